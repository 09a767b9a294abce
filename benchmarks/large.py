"""Large networks: steps of the flow, and what a step costs in gradients of the loss.

Digits 3 against 8, MLP 64-64-1 (4 160 weights, 357 images) to far beyond any floating-point kappa,
and to the limit; limits of plain ReLU networks by width, on 60 of the images; limits of deep linear
networks on 200 points of 100 inputs, beside the max-margin direction; and one step with the
dense Jacobian beside one without, by size. A gradient is one of the adversarial loss, perturbation
included, compiled, timed in the same process between segments of the flow.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from _common import run_benchmark, show
from _large import COLUMNS, Costs, flow_row, in_fresh_process, peak_gb

import gflow
from gflow import losses, networks, perturbations
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.field import Field

DIGITS_ATTACKS = {
    "FGM 0.3": perturbations.fgm(0.3),
    "FGSM 0.05": perturbations.fgsm(0.05, smoothing=0.1),
    "PGD l2 0.3": perturbations.pgd(0.3, order=2, step_size=0.1, num_steps=5),
}
# Attacks and widths of plain ReLU networks.
KINKED = (("clean", 16), ("clean", 33), ("clean", 77), ("FGM 0.3", 16), ("FGM 0.3", 33))
# Attacks and widths of deep linear networks.
DEEP_LINEAR = tuple(
    (attack, widths)
    for widths in ((100, 10, 1), (100, 30, 30, 1), (100, 100, 1))
    for attack in ("clean", "FGM 0.1")
)
# Stages of a search whose steps are systems.
NEWTON = ("newton", "kinks", "sliding")
# Of initial weights, for the limits.
NUM_SEEDS = 3
# Of the 357 images, in the small form.
FEW_IMAGES = 40


def measure(smoke: bool) -> dict[str, Any]:
    show({}, COLUMNS, header=True)
    return {
        "digits": digits_rows(smoke),
        "digits_limits": limit_rows(smoke),
        "limits_at_kinks": kinked_rows(smoke),
        "deep_linear": deep_linear_rows(smoke),
        "dense_or_not": crossover(smoke),
    }


def digits_rows(smoke: bool) -> list[dict[str, Any]]:
    """One row for an attack and a cap; kappa_c times the margin, near 0.03, is 30 or 300."""
    rows = []
    for name in list(DIGITS_ATTACKS)[: 1 if smoke else 3]:
        for cap in (1e3,) if smoke else (1e3, 1e4):
            row = in_fresh_process(digits_row, name, cap, *((24, FEW_IMAGES) if smoke else (250,)))
            rows.append({"problem": "digits", "attack": name, **row})
            show(rows[-1], COLUMNS)
    return rows


def digits_row(
    attack: str, cap: float, budget: int, num_images: int | None = None
) -> dict[str, Any]:
    """The flow to a stationarity of 1e-3."""
    problem, start = digits_problem(attack, num_images=num_images)
    return flow_row(problem, start, gflow.Rosenbrock(), cap, 1e5, budget)


def limit_rows(smoke: bool) -> list[dict[str, Any]]:
    """`find_limit` on the digits: one row an attack and a seed of the weights."""
    columns = ("attack", "seed", "result", "verdict", "num_steps", "num_saddles", "stationarity")
    columns += ("margin", "seconds", "peak_gb")
    show({}, columns, header=True)
    rows = []
    for name in list(DIGITS_ATTACKS)[: 1 if smoke else 3]:
        for seed in range(1 if smoke else NUM_SEEDS):
            row = in_fresh_process(limit_row, name, seed, *((4, FEW_IMAGES) if smoke else (64,)))
            rows.append({"attack": name, "seed": seed, **row})
            show(rows[-1], columns)
    return rows


def limit_row(attack: str, seed: int, width: int, num_images: int | None = None) -> dict[str, Any]:
    """Compilation included."""
    problem, start = digits_problem(attack, seed, width, num_images)
    begin = time.perf_counter()
    limit = gflow.find_limit(problem, start, max_steps=600, throw=False)
    seconds = time.perf_counter() - begin
    row = {"result": limit.result_name, "verdict": limit.verdict}
    row |= {"num_steps": limit.num_flow_steps, "seconds": seconds, "peak_gb": peak_gb()}
    row |= {"num_saddles": sum(stage.kind == "escape" for stage in limit.stages)}
    if limit.polished is not None:
        row |= {"stationarity": limit.certificate.stationarity, "margin": limit.margin}
    return row | {"limit": limit.to_dict()}


def kinked_rows(smoke: bool) -> list[dict[str, Any]]:
    """`find_limit` of plain ReLU networks, whose limits lie at kinks: one row a width."""
    columns = ("attack", "parameters", "result", "verdict", "num_systems", "num_saddles")
    columns += ("stationarity", "margin", "seconds", "peak_gb")
    show({}, columns, header=True)
    rows = []
    for attack, width in [("clean", 2)] if smoke else KINKED:
        row = in_fresh_process(kinked_row, attack, width, 8 if smoke else 60)
        rows.append({"attack": attack, **row})
        show(rows[-1], columns)
    return rows


def kinked_row(attack: str, width: int, num_images: int) -> dict[str, Any]:
    """Compilation included; systems are all that Newton's method solved on the way."""
    digits, network = gflow.datasets.digits(), networks.mlp((64, width, 1))
    chosen = np.random.default_rng(0).permutation(len(digits.x))[:num_images]
    data = gflow.Dataset(np.asarray(digits.x)[chosen], np.asarray(digits.y)[chosen])
    chosen_attack = perturbations.clean() if attack == "clean" else DIGITS_ATTACKS[attack]
    problem = gflow.Problem(network, data, loss=losses.logistic(), perturbation=chosen_attack)
    row = found_row(problem, network.init(0))
    return {"parameters": 65 * width, **row}


def deep_linear_rows(smoke: bool) -> list[dict[str, Any]]:
    """`find_limit` of deep linear networks, whose product tends to the max-margin direction."""
    columns = ("attack", "widths", "parameters", "result", "verdict", "num_steps", "stationarity")
    columns += ("error", "first", "further", "peak_gb")
    show({}, columns, header=True)
    rows = []
    for attack, widths in [("clean", (8, 130, 1))] if smoke else DEEP_LINEAR:
        row = in_fresh_process(deep_linear_row, attack, widths, 12 if smoke else 200)
        rows.append({"attack": attack, "widths": widths, **row})
        show(rows[-1], columns)
    return rows


def deep_linear_row(attack: str, widths: tuple[int, ...], num_examples: int) -> dict[str, Any]:
    """CPU seconds of the first call, compilation included, and of a further one; the error is the
    distance of the product's direction from that of `max_margin`.
    """
    network, radius = networks.deep_linear(widths), 0.0 if attack == "clean" else 0.1
    data = gflow.datasets.gaussian(num_examples, widths[0], gap=0.5, seed=0)
    problem = gflow.Problem(
        network, data, loss=losses.exponential(), perturbation=perturbations.fgm(radius)
    )
    seconds, start = [], network.init(0)
    for _ in range(2):
        begin = time.process_time()
        limit = gflow.find_limit(problem, start, throw=False)
        seconds.append(time.process_time() - begin)
    predictor = np.asarray(network.predictor(limit.direction))
    best = gflow.max_margin(data, radius=radius, order=2)
    row: dict[str, Any] = {"first": seconds[0], "further": seconds[1], "peak_gb": peak_gb()}
    row |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(start))}
    row |= {"result": limit.result_name, "verdict": limit.verdict, "basin": limit.basin}
    row |= {"num_steps": limit.num_flow_steps, "stationarity": limit.certificate.stationarity}
    row["error"] = float(np.linalg.norm(predictor / np.linalg.norm(predictor) - best.direction))
    return row | {"seconds_by_stage": [(stage.kind, stage.seconds) for stage in limit.stages]}


def found_row(problem: gflow.Problem, start: Any) -> dict[str, Any]:
    """What `find_limit` finds, and what it takes."""
    begin = time.perf_counter()
    limit = gflow.find_limit(problem, start, max_steps=600, throw=False)
    row: dict[str, Any] = {"seconds": time.perf_counter() - begin, "peak_gb": peak_gb()}
    row |= {"result": limit.result_name, "verdict": limit.verdict}
    row |= {"num_steps": limit.num_flow_steps, "margin": limit.margin}
    row |= {"num_saddles": sum(stage.kind == "escape" for stage in limit.stages)}
    newton = [stage for stage in limit.stages if stage.kind in NEWTON]
    row["num_systems"] = sum(stage.num_steps for stage in newton)
    row["seconds_by_stage"] = [(stage.kind, stage.seconds) for stage in limit.stages]
    return row | {"stationarity": limit.certificate.stationarity, "limit": limit.to_dict()}


def digits_problem(
    attack: str, seed: int = 0, width: int = 64, num_images: int | None = None
) -> tuple[gflow.Problem, Any]:
    """Digits 3 against 8 under an attack, and the initial weights of a network 64-width-1."""
    network = networks.mlp((64, width, 1), smoothing=0.05)
    digits = gflow.datasets.digits()
    problem = gflow.Problem(
        network,
        gflow.Dataset(digits.x[:num_images], digits.y[:num_images]),
        loss=losses.exponential(),
        perturbation=DIGITS_ATTACKS[attack],
    )
    return problem, network.init(seed)


def crossover(smoke: bool) -> list[dict[str, Any]]:
    """Seconds of one Rodas5P step at one point, dense and matrix-free, and how far they differ."""
    columns = ("width", "parameters", "dense", "matrix_free", "gradient", "difference")
    show({}, columns, header=True)
    rows = []
    for width in (4,) if smoke else (4, 8, 16, 32):
        rows.append(crossover_row(width, *((1, FEW_IMAGES) if smoke else (7,))))
        show(rows[-1], columns)
    return rows


def crossover_row(width: int, repeats: int, num_images: int | None = None) -> dict[str, Any]:
    problem, start = digits_problem("FGM 0.3", width=width, num_images=num_images)
    flow = gflow.integrate(
        problem,
        start,
        until=gflow.Until(log_kappa=20.0),
        solver=gflow.Rosenbrock(linear_solver=gflow.Krylov()),
        tolerance=1e-2,
        kappa_cap=1e3,
        max_steps=60,
        throw=False,
    )
    field = Field(problem, flow.layout, np.asarray(np.log(1e3)))
    tail = [flow.log_kappa[-1] / problem.degree, 0.0]
    state = jnp.asarray(np.concatenate([flow.vectors[-1], tail]))
    h = jnp.asarray(flow.step[-2])
    row: dict[str, Any] = {"width": width, "parameters": flow.layout.size}
    row["gradient"] = Costs(problem, flow.direction).gradient_seconds()
    ends = []
    for name, linear in (("dense", lx.LU()), ("matrix_free", gflow.Krylov(1e-4))):
        solver = ClockedRosenbrock(linear_solver=linear)
        run = eqx.filter_jit(lambda s, h, f, by: by.step(None, 0.0 * h, h, s, f, None, False)[0])
        ends.append(jax.block_until_ready(run(state, h, field, solver)))
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            jax.block_until_ready(run(state, h, field, solver))
            seconds.append(time.perf_counter() - begin)
        row[name] = min(seconds)
    moved = jnp.linalg.norm(ends[0] - state)
    return row | {"difference": float(jnp.linalg.norm(ends[0] - ends[1]) / moved)}


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
