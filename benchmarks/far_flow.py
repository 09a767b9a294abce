"""The flow of linear networks to kappa 1e12, and its limit, beside the convex reference.

Linear and deep linear networks (degrees 1 to 4) on Gaussian points of gap 0.5, clean and under
l_2 and l_inf attacks. For every problem, from small and larger initial weights: steps, and twice
the distance of the predictor at the end, times kappa: to the limit, which is a property of the
flow, and to a tighter integration at the same kappa, which is the solver's error. Then `find_limit`
beside `max_margin`; how fast the flow comes to its limit; l_inf attacks so large that the limit
has zeros, where an unsmoothed sign chatters; and an attack as large as the margin, where the norm
grows like `t^(1/3)`.
"""

import math
import time
from typing import Any

import numpy as np
from _common import run_benchmark, show, timed
from _problems import (
    ATTACKS,
    Attack,
    linear_network,
    linear_problem,
    max_margin,
    predictor_direction,
    predictor_error,
    smoothed,
)

import gflow
from gflow import perturbations

FAR = 1e12
# Of the direction, of |params| and of 1 + t, per step; and of the run that is compared with.
LOOSE = {"tolerance": 0.1, "rtol_direction": 0.1}
FINE = {"tolerance": 1e-7, "atol_logit": 1e-3, "max_steps": 1000}
SCALES = (0.1, 0.5)
PROGRESS = (1e3, 1e6, 1e9, 1e12)


def measure(smoke: bool) -> dict[str, Any]:
    kinds = {"40x5": (40, 5), "74x20": (74, 20)}
    kinds = dict(list(kinds.items())[:1]) if smoke else kinds
    data = {name: gflow.datasets.gaussian(*shape, gap=0.5, seed=0) for name, shape in kinds.items()}
    degrees = (1,) if smoke else (1, 2, 3, 4)
    attacks = {"l2": ATTACKS["l2"]} if smoke else ATTACKS
    tables = [(name, points, degrees, attacks) for name, points in data.items()]
    return {
        "far": [row for given in tables for row in far_rows(*given)],
        "limits": [row for given in tables for row in limits(*given)],
        "large": [] if smoke else limits("200x100", larger(), (1,), ATTACKS),
        "approach": [row for name, points in data.items() for row in approach(name, points, smoke)],
        "chatter": chatter(data["40x5"], smoke),
        "critical": critical(smoke),
    }


def larger() -> gflow.Dataset:
    return gflow.datasets.gaussian(200, 100, gap=0.5, seed=0)


def far_flow(problem, start, kappa: float = FAR, **options):
    until = gflow.Until(log_kappa=math.log(kappa))
    options = {"solver": gflow.Rosenbrock(), "throw": False, "max_steps": 5000} | options
    return gflow.integrate(problem, start, until=until, **options)


def far_rows(
    name: str, data: gflow.Dataset, degrees: tuple[int, ...], attacks: dict[str, Attack]
) -> list[dict[str, Any]]:
    """The flow to kappa 1e12."""
    columns = ("data", "degree", "attack", "scale", "result", "num_steps", "num_rejected_steps")
    columns += ("limit_kappa", "solver_kappa", "fine_steps", "seconds")
    rows = []
    show({}, columns, header=True)
    for degree in degrees:
        network = linear_network(data.x.shape[1], degree)
        for key, attack in attacks.items():
            for scale in SCALES:
                row = far_row(network, data, attack, scale)
                rows.append({"data": name, "degree": degree, "attack": key, "scale": scale, **row})
                show(rows[-1], columns)
    return rows


def far_row(network, data, attack: Attack, scale: float) -> dict[str, Any]:
    problem, start = linear_problem(network, data, attack), network.init(0, scale=scale)
    far_flow(problem, start, **LOOSE)  # compiles
    flow = far_flow(problem, start, **LOOSE)
    row = {"result": flow.result_name}
    row |= {name: flow.stats[name] for name in ("num_steps", "num_rejected_steps")}
    if not flow.successful:
        return row
    limit = max_margin(data, attack).direction
    row |= {"seconds": flow.stats["seconds"]}
    row |= {"limit_kappa": FAR * predictor_error(network, flow.direction, limit)}
    fine = far_flow(problem, start, **FINE)
    row |= {"fine_result": fine.result_name}
    if fine.successful:
        same = predictor_direction(network, fine.direction)
        row |= {"solver_kappa": FAR * predictor_error(network, flow.direction, same)}
        row |= {"fine_steps": fine.stats["num_steps"]}
    return row


def limits(
    name: str, data: gflow.Dataset, degrees: tuple[int, ...], attacks: dict[str, Attack]
) -> list[dict[str, Any]]:
    """`find_limit` beside `max_margin`: error, and times called in alternation."""
    columns = ("data", "degree", "attack", "result", "num_steps", "error", "stationarity")
    columns += ("seconds", "reference_seconds", "ratio")
    rows = []
    show({}, columns, header=True)
    for degree in degrees:
        network = linear_network(data.x.shape[1], degree)
        for key, attack in attacks.items():
            row = limit_row(network, data, attack)
            rows.append({"data": name, "degree": degree, "attack": key, **row})
            show(rows[-1], columns)
    return rows


def limit_row(network, data, attack: Attack) -> dict[str, Any]:
    problem, start = linear_problem(network, data, attack), network.init(0, scale=SCALES[0])
    limit = gflow.find_limit(problem, start, throw=False)  # compiles
    row = {"result": limit.result_name, "verdict": limit.verdict}
    row |= {"num_steps": limit.num_flow_steps}
    if not limit.successful:
        return row
    reference = max_margin(data, attack)
    pairs = [
        (
            timed(lambda: gflow.find_limit(problem, start, throw=False), 1).seconds,
            timed(lambda: max_margin(data, attack), 1).seconds,
        )
        for _ in range(3)
    ]
    seconds, reference_seconds = np.median(pairs, axis=0)
    return row | {
        "error": predictor_error(network, limit.direction, reference.direction),
        "stationarity": limit.certificate.stationarity,
        "seconds": seconds,
        "flow_seconds": sum(stage.seconds for stage in limit.stages if stage.kind == "flow"),
        "stage_seconds": sum(stage.seconds for stage in limit.stages),
        "reference_seconds": reference_seconds,
        "ratio": seconds / reference_seconds,
    }


def approach(name: str, data: gflow.Dataset, smoke: bool) -> list[dict[str, Any]]:
    """Distance of the flow to its limit at several kappa, and its slope.

    It falls like 1/kappa where the support vectors span the inputs. Where they do not, the rest of
    the first layer stands still and the distance falls like `kappa^(-1/L)`.
    """
    columns = ("data", "degree", "scale", "slope", "distances")
    rows = []
    show({}, columns, header=True)
    attack = ATTACKS["clean"]
    limit = max_margin(data, attack).direction
    for degree in (2,) if smoke else (2, 3, 4):
        network = linear_network(data.x.shape[1], degree)
        problem = linear_problem(network, data, attack)
        for scale in (0.5,) if smoke else (0.5, 1e-3, 1e-6):
            flow = far_flow(problem, network.init(0, scale=scale), save=None, **LOOSE)
            row = {"data": name, "degree": degree, "scale": scale, "result": flow.result_name}
            row |= {"num_steps": flow.stats["num_steps"]}
            if flow.successful:
                points = [flow.at(log_kappa=math.log(kappa)) for kappa in PROGRESS]
                distances = [predictor_error(network, point, limit) for point in points]
                row |= {"kappa": PROGRESS, "distances": distances}
                row |= {"slope": np.diff(np.log(distances[1:])).mean() / math.log(1e3)}
            rows.append(row)
            show(row, columns)
    return rows


def chatter(data: gflow.Dataset, smoke: bool) -> list[dict[str, Any]]:
    """The sign of FGSM, exact and smoothed, at radii up to one where the limit has zeros."""
    columns = ("radius", "smoothing", "degree", "num_zeros", "result", "num_steps")
    columns += ("num_rejected_steps", "log_kappa", "error", "seconds")
    rows = []
    show({}, columns, header=True)
    for share in (0.5,) if smoke else (0.5, 0.95):
        radius = share * gflow.reference.largest_feasible_radius(data, order=math.inf)
        exact = Attack(perturbations.fgsm(radius), radius, math.inf)
        limit = max_margin(data, exact).direction
        for degree in (1,) if smoke else (1, 2):
            for smoothing in (0.0,) if smoke else (0.0, 1e-4, 1e-3):
                attack = smoothed(exact, smoothing)
                network = linear_network(data.x.shape[1], degree)
                problem = linear_problem(network, data, attack)
                begin = time.perf_counter()
                options = LOOSE | {"max_steps": 500 if smoke else 2000}
                flow = far_flow(problem, network.init(0, scale=0.5), **options)
                row = {"radius": radius, "smoothing": smoothing, "degree": degree}
                row |= {"num_zeros": int(np.sum(np.abs(limit) < 1e-9))}
                row |= {"result": flow.result_name, "seconds": time.perf_counter() - begin}
                row |= {name: flow.stats[name] for name in ("num_steps", "num_rejected_steps")}
                row |= {"log_kappa": float(flow.log_kappa[-1])}
                row |= {"error": predictor_error(network, flow.direction, limit)}
                rows.append(row)
                show(row, columns)
    return rows


def critical(smoke: bool) -> list[dict[str, Any]]:
    """Steps to a time at radius 1, the largest margin of x = (1, 1), y = 1 and x = (-1, 2), y = -1.

    With w = (a, b) the exponential loss tends to `exp(-b) + exp(2b)` as a grows, which
    b = -log(2) / 3 makes smallest, `2^(1/3) + 2^(-2/3)`; then `da/dt = Loss b^2 / (2 a^2)`, so that
    `|w| = (3/2 Loss b^2 t)^(1/3)`. `error` is the relative one of |w|.
    """
    columns = ("solver", "tolerance", "time", "result", "num_steps", "error")
    data = gflow.Dataset(np.array([[1.0, 1.0], [-1.0, 2.0]]), np.array([1, -1]))
    network, attack = gflow.networks.linear(2), perturbations.fgm(1.0)
    loss = gflow.losses.exponential()
    problem = gflow.Problem(network, data, loss=loss, perturbation=attack)
    solvers = {"automatic": None, "Rosenbrock": gflow.Rosenbrock()}
    rows = []
    show({}, columns, header=True)
    for name, solver in solvers.items():
        for tolerance in (1e-6,) if smoke else (1e-5, 1e-6, 1e-8):
            for until in (1e6,) if smoke else (1e6, 1e9, 1e12, 1e15, 1e18):
                flow = gflow.integrate(
                    problem,
                    network.init(0, scale=1.0),
                    until=gflow.Until(time=until),
                    solver=solver,
                    tolerance=tolerance,
                    throw=False,
                )
                row = {"solver": name, "tolerance": tolerance, "time": until}
                row |= {"result": flow.result_name}
                if flow.successful:
                    norm = float(np.linalg.norm(flow.params[0]))
                    row |= {"num_steps": flow.stats["num_steps"]}
                    row |= {"error": abs(norm / critical_norm(until) - 1)}
                rows.append(row)
                show(row, columns)
    return rows


def critical_norm(time: float) -> float:
    """`|w|` of `critical` at a large time."""
    shift, loss = math.log(2) / 3, 2 ** (1 / 3) + 2 ** (-2 / 3)
    return (1.5 * loss * shift**2 * time) ** (1 / 3)


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
