"""Hostile problems: is anything called right that is wrong, does anything hang or end in an error?

2000 problems of a few shapes (`tests/_hostile.py`): data that nothing separates, duplicated,
contradictory, blank, collinear; scales 1e-12 to 1e12, starts 1e-10 to 1e10 times an ordinary one,
radii up to the size of the data; linear, deep linear, ReLU^2 and plain ReLU networks, both losses.
`find_limit`, `integrate`, `certify` and `max_margin` are called on each; what they say is judged
by margins, gradients, multipliers and linear programs of NumPy and SciPy. Every outcome is counted;
a fault, an undocumented exception, or a call of more than a minute is listed.
"""

import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _common import run_case_by_case, show

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import _hostile

# Problems of each network; plain ReLUs take the longest.
COUNTS = {"linear": 800, "deep": 500, "squared": 500, "relu": 200}
CALLS = {
    "find_limit": (_hostile.judged_limit, {"max_steps": 500}),
    "integrate and certify": (_hostile.judged_flow, {"max_steps": 2000}),
    "max_margin": (_hostile.judged_reference, {}),
}
LONG = 60.0
COLUMNS = ("network", "done", "faults", "errors", "long")
# A line is shown after so many cases of a network.
_SHOWN = 20


def cases(smoke: bool) -> list[_hostile.Case]:
    counts = {"linear": 3} if smoke else COUNTS
    return [case for network, count in counts.items() for case in drawn(network, count)]


def add(measured: dict[str, Any], case: _hostile.Case) -> None:
    """Every call on a case, its outcome counted; listed where it is wrong or long."""
    warnings.simplefilter("error")
    if not measured:
        show({}, COLUMNS, header=True)
        measured |= {"done": {}, "outcomes": {}, "longest": dict.fromkeys(CALLS, 0.0), "listed": []}
    done, outcomes, longest = (measured[name] for name in ("done", "outcomes", "longest"))
    for name, (call, options) in CALLS.items():
        outcome, seconds = judged(call, case, options)
        key = f"{name}, {case.network}: {outcome.outcome}"
        outcomes[key] = outcomes.get(key, 0) + 1
        longest[name] = max(longest[name], seconds)
        if outcome.fault is not None or seconds > LONG:
            row = {"call": name, **case._asdict(), "outcome": outcome.outcome}
            measured["listed"].append(row | {"fault": outcome.fault, "seconds": seconds})
    done[case.network] = done.get(case.network, 0) + 1
    if done[case.network] % _SHOWN == 0:
        show(row_of(case.network, done[case.network], measured["listed"]), COLUMNS)


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    listed = measured["listed"]
    return {
        "num_problems": sum(measured["done"].values()),
        "num_faults": sum(row["fault"] is not None for row in listed),
        "outcomes": dict(sorted(measured["outcomes"].items())),
    }


def drawn(network: str, count: int) -> Iterator[_hostile.Case]:
    """The same problems in every run; two fifths each at scale 1, an ordinary start, no attack."""
    generator = np.random.default_rng(len(network))

    def maybe(low: float, high: float) -> float:
        return 0.0 if generator.random() < 0.4 else float(generator.uniform(low, high))

    for _ in range(count):
        yield _hostile.Case(
            network=network,
            data=str(generator.choice(_hostile.DATA)),
            loss=str(generator.choice(list(_hostile.LOSSES))),
            log10_scale=maybe(-12, 12),
            log10_start=maybe(-10, 10),
            radius=maybe(0, 1),
            seed=int(generator.integers(10_000)),
        )


def judged(call, case: _hostile.Case, options: dict) -> tuple[_hostile.Verdict, float]:
    """What became of a call; any exception is a fault, since these inputs are all allowed."""
    begin = time.perf_counter()
    try:
        found = call(case, **options)
    except Exception as error:
        found = _hostile.Verdict(type(error).__name__, str(error).splitlines()[0])
    return found, time.perf_counter() - begin


def row_of(network: str, done: int, listed: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [row for row in listed if row["network"] == network]
    errors = [row for row in mine if row["outcome"].endswith(("Error", "Warning"))]
    faults = [row for row in mine if row["fault"] is not None and row not in errors]
    return {
        "network": network,
        "done": done,
        "faults": len(faults),
        "errors": len(errors),
        "long": sum(row["seconds"] > LONG for row in mine),
    }


if __name__ == "__main__":
    run_case_by_case(__doc__, cases, add, summary)
