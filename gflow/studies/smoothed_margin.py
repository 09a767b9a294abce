"""The smoothed adversarial margin never falls along the total gradient; along the frozen it may."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import squared_relu
from gflow.studies.study import Comparison, Finding, Measurement, Study
from gflow.studies.style import GREY, panels

_RADIUS, _LOG_LOSS, _MAX_STEPS = 0.25, -12.0, 800
# Flows from random starts, as training begins; and one, found among 1500, whose loss comes below 1
# and rises again. Its tolerance is such that other solvers agree on the rise.
_SEEDS, _FULL_SEEDS, _RISING, _TOLERANCE = range(4), range(100), 509, 1e-10
# Random directions of the search, by thousands; the log-loss at which they are looked at, and the
# one at which the flow from the worst of them begins.
_BATCH, _BATCHES, _FULL_BATCHES = 4096, 40, 400
_LOOKED_AT, _BEGUN_AT = -0.3, -3.0
# Bisection steps for the norm with that loss, log kappa between these.
_HALVINGS, _LOG_KAPPAS = 50, (-10.0, 30.0)


def _measure(small: bool) -> Measurement:
    problems = {gradient: squared_relu(_RADIUS, gradient) for gradient in ("total", "frozen")}
    seeds = list(_SEEDS if small else _FULL_SEEDS)
    falls = _falls(problems["total"], [*seeds, _RISING])
    rising = _flow(problems["frozen"], problems["frozen"].network.init(_RISING), _TOLERANCE)
    points, rates = _search(problems, _BATCHES if small else _FULL_BATCHES)
    worst = points[np.argmin(rates["frozen"])]
    start = _at_loss(problems["total"], worst, _BEGUN_AT)[0]
    flows = {name: _flow(problem, start) for name, problem in problems.items()}
    deepest = {name: _fall(flow) for name, flow in flows.items()}
    count, falling = len(points), int(np.sum(rates["frozen"] < 0))
    where = f"flow from the worst of them at Loss = e^{_BEGUN_AT:g}"
    found: tuple[tuple[str, float, float, float, Comparison], ...] = (
        (
            f"total: largest fall over {len(falls)} random starts, relative",
            *(0.0, max(falls), 1e-9, "at most"),
        ),
        (
            f"total: smallest d ln(margin) at {count} separating directions",
            *(0.0, rates["total"].min(), 1e-9, "at least"),
        ),
        (f"total: fall along the {where}, relative", 0.0, deepest["total"], 1e-9, "at most"),
        (
            f"frozen, random start {_RISING}: rise of ln Loss from below 0",
            *(0.0, _rise(rising), 1e-2, "apart"),
        ),
        (f"frozen: fall along the {where}, relative", 0.0, deepest["frozen"], 0.27, "apart"),
        (
            "frozen: share of the separating directions at which it falls",
            *(0.0, falling / count, 2e-2, "at most"),
        ),
    )
    findings = tuple(Finding(*one) for one in found)
    curves = {name: (flow.log_kappa, flow.smoothed_margin) for name, flow in flows.items()}
    return Measurement(findings, {"curves": curves, "rates": rates})


def _falls(problem: Any, seeds: list[int]) -> list[float]:
    """Of the flows from random starts; without those that slide along kinks of the attack."""
    flows = [_flow(problem, problem.network.init(seed)) for seed in dict.fromkeys(seeds)]
    return [_fall(flow) for flow in flows if flow.successful]


def _flow(problem: Any, start: Any, tolerance: float = 1e-8) -> Any:
    return gflow.integrate(
        problem,
        start,
        until=gflow.Until(log_loss=_LOG_LOSS),
        solver=gflow.Rosenbrock(),
        tolerance=tolerance,
        save=None,
        max_steps=_MAX_STEPS,
        throw=False,
    )


def _fall(flow: Any) -> float:
    """`1 - margin / largest margin before`, the largest over the points with Loss < 1."""
    values = flow.smoothed_margin[flow.log_loss < 0]
    return float(np.max(1 - values / np.maximum.accumulate(values)))


def _rise(flow: Any) -> float:
    """The largest rise of ln Loss above a value that it had before, below 0.

    Where the loss is 1 the smoothed margin is 0, and its relative fall there is anything.
    """
    least = np.minimum.accumulate(flow.log_loss)
    return float(np.max((flow.log_loss - least)[least < 0]))


def _search(problems: Mapping[str, Any], batches: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The random directions that separate the data under attack, at the loss at which they are
    looked at; and `d ln(smoothed margin)`, along either flow, over a length of 1 of its clock.
    """
    import jax

    network = problems["total"].network
    stds = [shape[-1] ** -0.5 for shape in network.parameter_shapes]
    generator = np.random.default_rng(0)

    def looked_at(params: Any) -> tuple[Any, Any, dict[str, Any]]:
        point, separates = _at_loss(problems["total"], params, _LOOKED_AT)
        found = {name: _rate(problem, point) for name, problem in problems.items()}
        return point, separates, found

    look = jax.jit(jax.vmap(looked_at))
    points, rates = [], {name: [] for name in problems}
    for _ in range(batches):
        drawn = tuple(
            std * generator.normal(size=(_BATCH, *shape))
            for std, shape in zip(stds, network.parameter_shapes, strict=True)
        )
        point, separates, found = jax.tree.map(np.asarray, look(drawn))
        for i in np.flatnonzero(separates):
            points.append(jax.tree.map(lambda leaf, i=i: leaf[i], point))
            for name, values in found.items():
                rates[name].append(values[i])
    return points, {name: np.array(values) for name, values in rates.items()}


def _at_loss(problem: Any, params: Any, log_loss: float) -> tuple[Any, Any]:
    """The multiple of the parameters with that loss, and whether there is one: all margins > 0."""
    import jax
    from jax import numpy as jnp
    from jax.scipy.special import logsumexp

    margins = problem.margins(params)

    def halved(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = (low + high) / 2
        above = logsumexp(-jnp.exp(middle) * margins) > log_loss
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = (jnp.asarray(end) for end in _LOG_KAPPAS)
    low, high = jax.lax.fori_loop(0, _HALVINGS, halved, (low, high))
    factor = jnp.exp(high / problem.degree)
    return jax.tree.map(lambda leaf: factor * leaf, params), jnp.min(margins) > 0


def _rate(problem: Any, params: Any) -> Any:
    """`d ln(smoothed margin)` along the flow of the problem's gradient mode."""
    import jax

    margin: Callable = partial(gflow.measures.smoothed_margin, problem)
    value, change = jax.jvp(margin, (params,), (problem.ascent(params).vector,))
    return change / value


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    for gradient, (log_kappa, margin) in data["curves"].items():
        left.plot(log_kappa, margin, label=f"{gradient} gradient")
    left.set(xlabel="ln κ", ylabel="smoothed adversarial margin", yscale="log")
    for gradient, rates in data["rates"].items():
        right.plot(np.arange(1, len(rates) + 1), np.sort(rates), label=f"{gradient} gradient")
    right.axhline(0.0, **GREY)
    right.set(xlabel="separating directions, in order", ylabel="d ln(smoothed margin) / dτ")
    right.set_xscale("log")
    right.set_yscale("symlog", linthresh=1.0)
    left.legend()
    return figure


STUDY = Study(
    name="smoothed-margin",
    title="The smoothed adversarial margin: monotone or not",
    claim="Once the loss is below that of a margin of 0, the smoothed normalized adversarial "
    "margin never falls along the flow of adversarial training.",
    correction="It never falls along the total gradient, which differentiates through the "
    "perturbation. Training holds the perturbation fixed; then it can fall, by 78 % from a start "
    "that was searched for, whose loss is e^-3 already. That is rare: of 163 840 random directions "
    "392 separate the data under attack, and at 3 of these it falls. Of 1500 flows from random "
    "starts, as training begins, one is known whose loss turns just below 1, rises by 7 % and then "
    "falls for good.",
    setting="10 points in 3 dimensions, ReLU² network 3-6-1, exponential loss, l2-FGM of radius "
    "0.25, flow to a loss of e^-12; starts whose flow slides along kinks are left out. The search "
    "scales every separating direction to a loss of e^-0.3 and differentiates the margin along "
    "either flow; from the direction of the steepest fall both flows are followed, the total one "
    "until it slides along a kink.",
    source="Lyu & Zhu 2022; Lyu & Li 2020 for clean data",
    run=_measure,
    figure=_draw,
    full="100 starts in place of 4, and the search among 1.6 million directions in place of 160 "
    "thousand. The work is 10 to 20 times that of the small form.",
)
