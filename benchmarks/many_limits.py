"""Many limits in one call: 64 two-layer networks by `find_limits`, and a loop over `find_limit`.

Networks on 30 points under FGM 0.05, every run with data and initial weights of its own. CPU time a
run, cold (the first call of a process, compilation included, without a cache on disk) and warm (the
second call), of `find_limits` and of the loop, each in a process of its own; and of the loop of
another version, where the environment variable `GFLOW_OLDER` names the folder of its source. Beside
it outcomes and stationarity, and how far the limits are from those of the loop: of confirmed strict
ones the direction, of all the margin. Last the cost of a run of a small network as their number
grows.
"""

import json
import math
import os
import sys
import time
from collections import Counter
from typing import Any

import jax
import numpy as np

import gflow
from gflow import losses, networks, perturbations

SETS = {
    "relu_squared 7-8-1, separable": ((7, 8, 1), {"power": 2}, "separable"),
    "smoothed_relu 7-8-1, separable": ((7, 8, 1), {"smoothing": 0.05}, "separable"),
    "relu_squared 10-20-1, random labels": ((10, 20, 1), {"power": 2}, "random"),
}
SMALL = ((4, 4, 1), {"power": 2}, "separable")
# Another version of gflow, for which only `cost` is called, lacks what the common part imports.
if sys.argv[1:2] != ["--cost"]:
    from _common import printed_by, run_benchmark, show

COLUMNS = ("name", "how", "num_runs", "cold", "warm", "successful")


def runs_of(widths, options, labels: str, num_runs: int, num_examples: int = 30):
    """Problems and starts."""
    network = networks.mlp(widths, **options)
    attack = perturbations.fgm(0.05)
    problems, starts = [], []
    for seed in range(num_runs):
        data = data_of(labels, num_examples, widths[0], seed)
        problems.append(
            gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
        )
        starts.append(network.init(seed))
    return problems, starts


def data_of(labels: str, num_examples: int, dim: int, seed: int) -> gflow.Dataset:
    if labels == "separable":
        return gflow.datasets.gaussian(num_examples, dim, gap=0.5, seed=seed)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(num_examples, dim))
    return gflow.Dataset(x, np.where(generator.random(num_examples) < 0.5, -1, 1))


def together(problems, starts) -> list[Any]:
    return gflow.find_limits(problems, starts)


def loop(problems, starts) -> list[Any]:
    return [gflow.find_limit(*each, throw=False) for each in zip(problems, starts, strict=True)]


def cost(how: str, given: Any, num_runs: int, num_examples: int) -> dict[str, Any]:
    """Cold and warm milliseconds a run, and the limits; of a process that has done nothing yet."""
    function = {"together": together, "loop": loop}[how]
    problems, starts = runs_of(*given, num_runs, num_examples)
    times = []
    for _ in range(2):
        begin = time.process_time()
        limits = function(problems, starts)
        times.append(1e3 * (time.process_time() - begin) / num_runs)
    return {
        "cold": times[0],
        "warm": times[1],
        "outcomes": [
            [limit.result_name, limit.verdict, getattr(limit, "basin", "")] for limit in limits
        ],
        "margins": [limit.certificate.normalized_margin for limit in limits],
        "stationarity": [limit.certificate.stationarity for limit in limits],
        "steps": [limit.num_flow_steps for limit in limits],
        "directions": [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(limit.direction)]).tolist()
            for limit in limits
        ],
    }


def in_process(how: str, given: Any, num_runs: int, num_examples: int, older: str | None = None):
    """`cost`, measured in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    environment["JAX_ENABLE_X64"] = "1"
    if older:
        environment["PYTHONPATH"] = older
    call = json.dumps([how, given, num_runs, num_examples])
    return printed_by([__file__, "--cost", call], environment)


def measure(smoke: bool) -> dict[str, Any]:
    show({}, COLUMNS, header=True)
    num_runs, older = (2 if smoke else 64), os.environ.get("GFLOW_OLDER")
    sets = list(SETS.items())[: 1 if smoke else None]
    rows = [comparison(name, given, num_runs, older) for name, given in sets]
    return {"sets": rows, "growth": [growth(count) for count in growing(smoke)]}


def comparison(name: str, given: Any, num_runs: int, older: str | None) -> dict[str, Any]:
    """One set of runs: each way's cost, and how far its limits are from those of the loop."""
    found = {"together": in_process("together", given, num_runs, 30)}
    found["loop"] = in_process("loop", given, num_runs, 30)
    if older:
        found["older loop"] = in_process("loop", given, num_runs, 30, older)
    row: dict[str, Any] = {"name": name, "num_runs": num_runs}
    for how, each in found.items():
        row[how] = summary(each)
        show({"name": name[:14], "how": how, "num_runs": num_runs} | row[how], COLUMNS)
    for how in found.keys() - {"together"}:
        for state in ("cold", "warm"):
            row[f"{state}, {how} over together"] = found[how][state] / found["together"][state]
    return row | distances(found["together"], found["loop"])


def summary(each: dict[str, Any]) -> dict[str, Any]:
    names = [outcome[0] for outcome in each["outcomes"]]
    good = [s for s, name in zip(each["stationarity"], names, strict=True) if name == "successful"]
    return {
        "cold": each["cold"],
        "warm": each["warm"],
        "successful": len(good),
        "outcomes": dict(Counter(", ".join(outcome) for outcome in each["outcomes"])),
        "largest_stationarity": max(good, default=math.nan),
        "median_steps": float(np.median(each["steps"])),
        "most_steps": max(each["steps"]),
    }


def distances(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of limits that both ways found: margins that agree; directions of confirmed strict ones."""
    strict, same, both = [], 0, 0
    for i, (first, second) in enumerate(zip(one["outcomes"], other["outcomes"], strict=True)):
        if first[0] != "successful" or second[0] != "successful":
            continue
        both += 1
        same += abs(one["margins"][i] / other["margins"][i] - 1) < 1e-7
        confirmed = first[2] == second[2] == "confirmed"
        if confirmed and first[1] in ("strict maximum", "stable rest point"):
            gap = np.subtract(one["directions"][i], other["directions"][i])
            strict.append(float(np.linalg.norm(gap)))
    return {
        "both_successful": both,
        "same_margin": same,
        "confirmed_strict": len(strict),
        "largest_distance_of_these": max(strict, default=math.nan),
    }


def growing(smoke: bool) -> list[int]:
    return [2] if smoke else [16, 64, 256, 1024]


def growth(num_runs: int) -> dict[str, Any]:
    """The cost of a run of the small network."""
    row = {"num_runs": num_runs} | summary(in_process("together", SMALL, num_runs, 12))
    show({"name": "4-4-1", "how": "together"} | row, COLUMNS)
    return row


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cost"]:
        how, given, *counts = json.loads(sys.argv[2])
        print(json.dumps(cost(how, given, *counts)), file=sys.stdout)
    else:
        run_benchmark(__doc__, measure)
