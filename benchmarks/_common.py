"""What every benchmark shares: its arguments, its clock, and a record that says where it ran.

A benchmark is a script, `python benchmarks/NAME.py [--smoke] [--output results.json]`. `--smoke`
makes it small: it then only shows that it runs. `benchmarks/results/` holds the records of one full
run of each.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gflow._description import plain
from gflow._files import replacing, write_text

PACKAGES = ("gflow", "jax", "jaxlib", "diffrax", "equinox", "lineax", "optax", "numpy", "scipy")


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
    record = {
        "benchmark": description.strip().splitlines()[0],
        "smoke": given.smoke,
        "environment": environment(),
        "results": measure(given.smoke),
    }
    text = json.dumps(plain(record), indent=1, allow_nan=False, default=str)
    print(text)
    if given.output is None:
        return
    write_text(given.output, text + "\n")
    if draw is not None:
        draw(record["results"], given.output.with_suffix(".png"))


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
