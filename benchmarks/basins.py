"""Whose limit is it: how often the basin test of `find_limit` is right.

Two-layer networks 10-20-1 on 30 Gaussian points with random labels (smoothed ReLU, mu = 0.05, and
ReLU^2; clean and under FGM 0.05, total gradient) and deep linear networks 5-4-4-1. The references
are two flows of other tolerance and other cap: 1e-5 to 1e5 logits, and 1e-7 to 1e6 logits, both
followed to a stationarity of 1e-6. Where both end in one point the limit counts as determined. Each
row tells whether `find_limit` ended there, and what its basin test said of that.

The second reference had a tolerance of 1e-3 before. That is too loose to tell: the limits of
smoothed ReLU networks have 1 to 11 dead neurons of 20, far smaller than 1e-3, and errors of that
size decide whether they come to life again. Of the 40 clean ones it agreed with a flow of 1e-7 on
14, the flow of 1e-5 on 27.

A test that claims too much confirms limits that are wrong, or that no flow determines; one that
claims too little leaves determined ones undecided. Both are counted. Of what is confirmed without
being determined, it is counted how many end where the more accurate reference ends.

With `--output` the record is written as the run goes on, and a run that finds an unfinished one
goes on behind its last problem.
"""

import time
from typing import Any

import numpy as np
from _common import run_case_by_case, show

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout

SMOOTHED = networks.mlp((10, 20, 1), smoothing=0.05)
SQUARED = networks.mlp((10, 20, 1), power=2)
LINEAR = networks.deep_linear((5, 4, 4, 1))
FGM = perturbations.fgm(0.05)
FAMILIES = {
    "smoothed ReLU": (SMOOTHED, None, 40),
    "smoothed ReLU, FGM": (SMOOTHED, FGM, 20),
    "ReLU^2": (SQUARED, None, 20),
    "ReLU^2, FGM": (SQUARED, FGM, 10),
    "deep linear": (LINEAR, None, 10),
}
# Tolerance and logits of the references; where they stop.
REFERENCES = ((1e-5, 1e5), (1e-7, 1e6))
STATIONARITY, MOST_STEPS = 1e-6, 6000
# Directions this close are one limit; the references stop at a distance of about 1e-3.
SAME = 2e-2
COLUMNS = ("family", "seed", "reference", "right", "basin", "num_steps", "displacement", "seconds")


def cases(smoke: bool) -> list[tuple[str, int, bool]]:
    """The family and the seed of every problem, and whether it has references."""
    show({}, COLUMNS, header=True)
    if smoke:
        return [(next(iter(FAMILIES)), 0, False)]
    return [(name, seed, True) for name, (_, _, count) in FAMILIES.items() for seed in range(count)]


def add(measured: dict[str, Any], case: tuple[str, int, bool]) -> None:
    name, seed, referenced = case
    network, attack, _ = FAMILIES[name]
    measured.setdefault("rows", []).append(
        {"family": name, "seed": seed} | row(network, attack, seed, referenced)
    )
    show(measured["rows"][-1], COLUMNS)


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    rows = measured["rows"]
    families = dict.fromkeys(each["family"] for each in rows)
    by_family = {name: counts([r for r in rows if r["family"] == name]) for name in families}
    return {"all": counts(rows), "by_family": by_family}


def row(network, attack, seed: int, referenced: bool) -> dict[str, Any]:
    problem = gflow.Problem(
        network,
        data_of(network, seed),
        loss=losses.exponential(),
        perturbation=attack,
        gradient="total",
    )
    start = network.init(seed + 500)
    begin = time.perf_counter()
    limit = gflow.find_limit(problem, start, throw=False)
    seconds = time.perf_counter() - begin
    direction = np.asarray(Layout.of(limit.direction).flatten(limit.direction))
    ends = [reference(problem, start, *each) for each in REFERENCES] if referenced else []
    determined = all(end is not None for end in ends) and bool(ends) and near(*ends)
    return {
        "reference": "determined" if determined else "undetermined",
        "right": near(direction, ends[0]) if determined else None,
        "as_accurate": bool(ends) and ends[1] is not None and near(direction, ends[1]),
        "basin": limit.basin,
        "result": limit.result_name,
        "num_steps": limit.num_flow_steps,
        "saddles": limit.saddles_met,
        "displacement": limit.newton_displacement,
        "handover": limit.handover_stationarity,
        "seconds": seconds,
    }


def data_of(network, seed: int) -> gflow.Dataset:
    if network is LINEAR:
        return gflow.datasets.gaussian(30, 5, gap=0.5, seed=seed)
    generator = np.random.default_rng(1000 + seed)
    x = generator.normal(size=(30, 10))
    return gflow.Dataset(x, np.where(generator.random(30) < 0.5, -1, 1))


def reference(problem, start, tolerance: float, logits: float) -> np.ndarray | None:
    """Where the flow with this cap ends; None where it does not come so far."""
    options = {"solver": gflow.Rosenbrock(), "tolerance": tolerance, "throw": False, "save": 2}
    options |= {"max_steps": MOST_STEPS}
    first = gflow.integrate(problem, start, until=gflow.Until(logits=logits), **options)
    if not first.successful:
        return None
    until = gflow.Until(stationarity=STATIONARITY, accuracy=0.1)
    cap = float(np.exp(first.log_kappa[-1]))
    last = gflow.integrate(problem, first.params, until=until, kappa_cap=cap, **options)
    return last.vectors[-1] if last.successful else None


def near(left: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.linalg.norm(left - right) < SAME)


def counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    determined = [row for row in rows if row["reference"] == "determined"]
    others = [row for row in rows if row["reference"] != "determined"]
    confirmed = [row for row in determined if row["basin"] == "confirmed"]
    unsure = [row for row in others if row["basin"] == "confirmed"]
    return {
        "num_problems": len(rows),
        "determined": len(determined),
        "determined_and_right": sum(row["right"] for row in determined),
        "confirmed": len(confirmed),
        "confirmed_but_wrong": sum(not row["right"] for row in confirmed),
        "undetermined": len(others),
        "undetermined_but_confirmed": len(unsure),
        "of_these_as_the_more_accurate": sum(row["as_accurate"] for row in unsure),
        "num_steps": sum(row["num_steps"] for row in rows),
    }


if __name__ == "__main__":
    run_case_by_case(__doc__, cases, add, summary)
