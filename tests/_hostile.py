"""Hostile problems of a few shapes, and a judge of what gflow says of them, in plain NumPy.

Every problem has 6 examples in 3 dimensions, so that few programs are compiled. Its data may be
contradictory, duplicated, blank or all of one class, its scale anything between 1e-12 and 1e12, its
start between 1e-10 and 1e10 times an ordinary one, its radius beyond any margin.

The judge knows margins and gradients of each network by formulas of its own. A result that says
`successful` must hold by these: otherwise it is dishonest.
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog, nnls

import gflow
from gflow import losses, networks, perturbations

NUM_EXAMPLES, DIM, WIDTH = 6, 3, 4
NETWORKS = {
    "linear": networks.linear(DIM),
    "deep": networks.deep_linear((DIM, 2, 1)),
    "squared": networks.mlp((DIM, WIDTH, 1), power=2),
    "relu": networks.mlp((DIM, WIDTH, 1)),
}
DATA = ("separable", "random", "duplicated", "contradictory", "blank", "one against all")
DATA += ("collinear", "two examples apart")
LOSSES = {"exponential": losses.exponential(), "logistic": losses.logistic()}
TOLERANCE = 1e-8
# Of margins that count as equal, relative to the largest.
_EQUAL = 1e-7


class Case(NamedTuple):
    """A problem in a few words; `radius` is a share of the mean norm of the inputs."""

    network: str
    data: str
    loss: str
    log10_scale: float
    log10_start: float
    radius: float
    seed: int


class Verdict(NamedTuple):
    """What became of a problem: gflow's word for it, and why that is wrong, or None."""

    outcome: str
    fault: str | None


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """x (n, d) and y (n,) at scale 1."""
    generator = np.random.default_rng(case.seed)
    x = generator.normal(size=(NUM_EXAMPLES, DIM))
    y = np.where(generator.random(NUM_EXAMPLES) < 0.5, -1.0, 1.0)
    if case.data == "separable":
        y = np.where(x @ generator.normal(size=DIM) > 0, 1.0, -1.0)
    elif case.data == "duplicated":
        x[3:], y[3:] = x[:3], y[:3]
    elif case.data == "contradictory":
        x[1], y[1] = x[0], -y[0]
    elif case.data == "blank":
        x[0] = 0.0
    elif case.data == "one against all":
        y[:] = 1.0
    elif case.data == "two examples apart":
        x, y = np.outer(y, x[0]) * (1 + generator.random((NUM_EXAMPLES, 1))), y
    elif case.data == "collinear":
        x = np.outer(generator.normal(size=NUM_EXAMPLES), generator.normal(size=DIM))
    y[-1] = -y[0] if np.all(y == y[0]) else y[-1]  # a data set needs both classes
    return x, y


def problem(case: Case) -> tuple[gflow.Problem, Any]:
    """The problem and its start."""
    scale = 10.0**case.log10_scale
    x, y = inputs(case)
    radius = case.radius * scale * np.linalg.norm(x, axis=1).mean()
    with warnings.catch_warnings():
        # A radius beyond any margin is meant.
        warnings.filterwarnings("ignore", "`Problem.*exceeds the diameter", UserWarning)
        trained = gflow.Problem(
            NETWORKS[case.network],
            gflow.Dataset(scale * x, y),
            loss=LOSSES[case.loss],
            perturbation=perturbations.fgm(radius),
        )
    generator = np.random.default_rng(case.seed + 1)
    shapes = [np.shape(leaf) for leaf in trained.network.init(0)]
    length = 10.0**case.log10_start
    return trained, tuple(length * generator.normal(size=shape) for shape in shapes)


def flat(params: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in params])


def outputs(name: str, params: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`f(x)` and `grad_x f(x)`. Shapes: x (n, d) -> (n,), (n, d)."""
    weights = [np.asarray(leaf) for leaf in params]
    if name in ("linear", "deep"):
        product = weights[0] if name == "linear" else weights[1] @ weights[0]
        return x @ product[0], np.broadcast_to(product[0], x.shape)
    value = x @ weights[0].T
    if name == "squared":
        rectified = np.maximum(value, 0)
        return rectified**2 @ weights[1][0], (2 * rectified * weights[1][0]) @ weights[0]
    return np.maximum(value, 0) @ weights[1][0], ((value > 0) * weights[1][0]) @ weights[0]


def attacked(name: str, params: Any, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """`x - radius y g/|g|`, g the gradient of f, `x` where g is 0."""
    gradient = y[:, None] * outputs(name, params, x)[1]
    largest = np.abs(gradient).max(axis=1, keepdims=True)
    gradient = gradient / np.where(largest > 0, largest, 1.0)
    lengths = np.linalg.norm(gradient, axis=1, keepdims=True)
    return x - radius * gradient / np.where(lengths > 0, lengths, 1.0)


def gradients(name: str, params: Any, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """`grad q_i` at fixed inputs, rows; at kinks of a ReLU of every example one row a side."""
    weights = [np.asarray(leaf) for leaf in params]
    rows = []
    for one, label in zip(x, y, strict=True):
        if name == "linear":
            rows.append(label * one)
        elif name == "deep":
            first = np.outer(weights[1][0], one)
            rows.append(label * np.concatenate([first.ravel(), weights[0] @ one]))
        else:
            rows += [label * row for row in _two_layer_rows(name, weights, one)]
    return rows


def _two_layer_rows(name: str, weights: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    value, head = weights[0] @ x, weights[1][0]
    if name == "squared":
        rectified = np.maximum(value, 0)
        return [np.concatenate([np.outer(2 * rectified * head, x).ravel(), rectified**2])]
    sizes = np.linalg.norm(weights[0], axis=1) * np.linalg.norm(x)
    near = np.abs(value) <= 1e-7 * sizes.max(initial=0.0)
    patterns = [np.where(near, side, value > 0) for side in (0.0, 1.0)]
    for index in np.flatnonzero(near):
        patterns.append(np.where(np.arange(len(value)) == index, 1.0, patterns[0]))
    return [
        np.concatenate([np.outer(slope * head, x).ravel(), slope * value]) for slope in patterns
    ]


def fault_of_limit(case: Case, limit: Any) -> str | None:
    """Why a limit that says `successful` is none, or None."""
    trained, _ = problem(case)
    x, y = np.asarray(trained.dataset.x), np.asarray(trained.dataset.y)
    unit = flat(limit.direction)
    if not np.all(np.isfinite(unit)) or abs(np.linalg.norm(unit) - 1) > 1e-12:
        return "its direction has not norm 1"
    moved = attacked(case.network, limit.direction, x, y, float(trained.perturbation.radius))
    margins = y * outputs(case.network, limit.direction, moved)[0]
    sided = case.network == "relu" and case.radius > 0
    if not margins.min() > 0 and not sided:
        return f"its smallest margin is {margins.min():.3g}"
    if abs(limit.margin / margins.min() - 1) > 1e-6 and not sided:
        return f"it says margin {limit.margin:.6g}, NumPy {margins.min():.6g}"
    if not limit.margin > 0:
        return f"it says margin {limit.margin:.3g}"
    if sided:  # the attack jumps at the kink: its sides are not NumPy's to know
        return None
    active = margins <= margins.min() + _EQUAL * np.abs(margins).max()
    rows = gradients(case.network, limit.direction, moved[active], y[active])
    columns = np.array(rows).T
    largest = np.abs(columns).max()
    residual = nnls(columns / largest, unit)[1]
    return f"its stationarity is {residual:.2g} by NumPy" if residual > 1e-6 else None


def fault_of_flow(case: Case, flow: Any, log_loss: float) -> str | None:
    """Why a flow that says it reached a log-loss did not, or None."""
    trained, _ = problem(case)
    x, y = np.asarray(trained.dataset.x), np.asarray(trained.dataset.y)
    moved = attacked(case.network, flow.params, x, y, float(trained.perturbation.radius))
    margins = y * outputs(case.network, flow.params, moved)[0]
    # log log(1 + e^-q), which is -q for large q to rounding.
    each = -margins
    if case.loss == "logistic":
        each = np.where(margins < 30, np.log(np.logaddexp(0, -np.minimum(margins, 30))), -margins)
    largest = each.max()
    reached = largest + math.log(np.exp(each - largest).sum())
    if not reached <= log_loss + 1e-6 * max(1.0, abs(log_loss)):
        return f"its log-loss is {reached:.8g} by NumPy, asked for was {log_loss:g}"
    return None


def separable(case: Case, radius: float = 0.0) -> bool:
    """Whether some w has `y w.x >= 1` for all, by SciPy's linear program, at scale 1."""
    x, y = inputs(case)
    signed = y[:, None] * x
    found = linprog(np.zeros(DIM), A_ub=-signed, b_ub=-np.ones(len(y)), bounds=(None, None))
    return found.status == 0


def judged_limit(case: Case, **options: Any) -> Verdict:
    """`find_limit` on the problem, judged."""
    trained, start = problem(case)
    limit = gflow.find_limit(trained, start, throw=False, **options)
    fault = fault_of_limit(case, limit) if limit.successful else None
    if limit.successful and case.network == "linear" and not separable(case):
        fault = "no hyperplane separates these data"
    return Verdict(limit.result_name, fault)


def judged_flow(case: Case, log_loss: float = -3.0, **options: Any) -> Verdict:
    """`integrate` on the problem, judged, and `certify` at its end."""
    trained, start = problem(case)
    until = gflow.Until(log_loss=log_loss)
    flow = gflow.integrate(trained, start, until=until, throw=False, **options)
    fault = fault_of_flow(case, flow, log_loss) if flow.successful else None
    if np.all(np.isfinite(flat(flow.params))) and np.any(flat(flow.params)):
        certificate = gflow.certify(trained, flow.direction)
        if not certificate.separated and not np.isnan(certificate.stationarity):
            fault = "a stationarity without separation"
    return Verdict(flow.result_name, fault)


def judged_reference(case: Case) -> Verdict:
    """`max_margin` on the data, judged."""
    x, y = inputs(case)
    scale = 10.0**case.log10_scale
    radius = case.radius * scale * np.linalg.norm(x, axis=1).mean()
    answer = gflow.max_margin(gflow.Dataset(scale * x, y), radius=radius, order=2)
    if np.isnan(answer.margin):
        fault = "it says infeasible" if radius == 0 and separable(case) else None
        return Verdict("infeasible", fault)
    reached = (y * (scale * x @ answer.direction)).min() - radius
    if not abs(reached - answer.margin) <= 1e-9 * scale * np.abs(x).max():
        return Verdict("solved", f"margin {answer.margin:.6g}, NumPy {reached:.6g}")
    return Verdict("solved", None if answer.margin > 0 else "its margin is not positive")
