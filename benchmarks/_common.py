"""What every benchmark shares: its arguments, its clock, and a record that says where it ran.

A benchmark is a script, `python benchmarks/NAME.py [--smoke] [--output results.json]`. `--smoke`
makes it small: it then only shows that it runs. `benchmarks/results/` holds the records of one full
run of each.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gflow._description import plain
from gflow._files import replacing, write_text

PACKAGES = ("gflow", "jax", "jaxlib", "diffrax", "equinox", "lineax", "optax", "numpy", "scipy")


# A stopped run loses no more than this.
_SECONDS_UNWRITTEN = 10.0


class Timing(NamedTuple):
    """A result, and the median over its repetitions of the seconds that it took."""

    result: Any
    seconds: float
    first_seconds: float
    """The first call, which compiles."""


def timed(function: Callable[[], Any], repeats: int = 5) -> Timing:
    """Calls `function` once to compile, then `repeats` times, each to the end of its computation.

    An exception passes through: what failed has no time. Check the result before reporting it.
    """
    if repeats < 1:
        raise ValueError(f"`timed(repeats={repeats})`: at least one repetition is needed.")
    result, first = _seconds(function)
    seconds = []
    for _ in range(repeats):
        result, elapsed = _seconds(function)
        seconds.append(elapsed)
    return Timing(result, statistics.median(seconds), first)


def _seconds(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - start


def printed_by(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> Any:
    """What `python ARGUMENTS`, a process of its own, prints last: one line of JSON.

    Args:
        variables: its environment; None for that of this process.
    """
    run = subprocess.run(
        [sys.executable, *arguments], env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def environment() -> dict[str, Any]:
    """Versions and hardware, without anything that names the machine."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "float64": jax.config.read("jax_enable_x64"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def arguments(description: str) -> argparse.Namespace:
    """`smoke` and `output` from the command line; the folder of `output` exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="a small run that shows it works")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as JSON")
    given = parser.parse_args()
    if given.output is not None:
        # Before anything is computed: a folder that cannot be made must not cost a result.
        given.output.parent.mkdir(parents=True, exist_ok=True)
    return given


def run_benchmark(
    description: str,
    measure: Callable[[bool], Any],
    draw: Callable[[Any, Path], None] | None = None,
) -> None:
    """A benchmark's whole main part: `measure(smoke)` returns what is recorded.

    The first line of `description`, usually the script's `__doc__`, names the benchmark. With
    `--output`, `draw(results, path)` draws a figure beside the record, once that is written.
    """
    given = arguments(description)
    jax.config.update("jax_enable_x64", True)
    record = _record(description, given.smoke, measure(given.smoke))
    text = _text(record)
    print(text)
    if given.output is None:
        return
    write_text(given.output, text + "\n")
    if draw is not None:
        draw(record["results"], given.output.with_suffix(".png"))


def run_case_by_case(
    description: str,
    cases: Callable[[bool], Sequence[Any]],
    add: Callable[[dict[str, Any], Any], None],
    summary: Callable[[dict[str, Any]], Any],
) -> None:
    """The main part of a long benchmark, which may be stopped and gone on with.

    With `--output` the record is written while it runs, and a run that finds an unfinished one
    there goes on behind its last case. `num_done` of its `num_cases` says how far it came.

    Args:
        cases: all of them, of a small run and of a full one, the same in every run.
        add: adds a case to what has been measured, plain values only.
        summary: of what has been measured.
    """
    given = arguments(description)
    jax.config.update("jax_enable_x64", True)
    every = cases(given.smoke)
    done, measured = _unfinished(description, given) or (0, {})
    written = -math.inf
    for num_done, case in enumerate(every[done:], done + 1):
        add(measured, case)
        last = num_done == len(every)
        if not last and time.monotonic() - written < _SECONDS_UNWRITTEN:
            continue
        counts = {"num_done": num_done, "num_cases": len(every)}
        results = {**counts, "summary": summary(measured), "measured": measured}
        text = _text(_record(description, given.smoke, results))
        if given.output is not None:
            write_text(given.output, text + "\n")
        if last:
            print(text)
        written = time.monotonic()


def _unfinished(description: str, given: argparse.Namespace) -> tuple[int, dict[str, Any]] | None:
    """How many cases the record at `--output` holds, and what was measured of them."""
    if given.output is None or not given.output.exists():
        return None
    record = json.loads(given.output.read_text())
    same = (record["benchmark"], record["smoke"]) == (_title(description), given.smoke)
    results = record["results"]
    if not same or results.get("num_done", 0) >= results.get("num_cases", 0):
        return None
    return results["num_done"], results["measured"]


def _title(description: str) -> str:
    return description.strip().splitlines()[0]


def _record(description: str, smoke: bool, results: Any) -> dict[str, Any]:
    return {
        "benchmark": _title(description),
        "smoke": smoke,
        "environment": environment(),
        "results": results,
    }


def _text(record: dict[str, Any]) -> str:
    return json.dumps(plain(record), indent=1, allow_nan=False, default=str)


def new_panels(titles: Sequence[str], xlabel: str, ylabel: str) -> tuple[Any, list[Any]]:
    """A figure of matplotlib with one panel a title in a row, all of one height."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1,
        len(titles),
        figsize=(2.9 * len(titles) + 2.3, 3.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(xlabel)
        axes.grid(color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(ylabel)
    return figure, list(panels[0])


def save_panels(figure: Any, panels: Sequence[Any], path: Path) -> None:
    """Writes the figure as PNG, with one legend, of what the first panel shows, at its right."""
    from matplotlib import pyplot

    handles = [line for line in panels[0].get_lines() if len(line.get_xdata())]
    figure.legend(handles=handles, frameon=False, fontsize=8.5, loc="outside right center")
    with replacing(path) as handle:
        figure.savefig(handle, format="png", dpi=150)
    pyplot.close(figure)


def show(row: dict[str, Any], columns: Iterable[str], *, header: bool = False) -> None:
    """A line of a table on standard error, as soon as it is known; standard output is JSON."""
    cells = columns if header else [_cell(row.get(name)) for name in columns]
    print("  ".join(f"{cell:>14}" for cell in cells), file=sys.stderr, flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
