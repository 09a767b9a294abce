"""Killed at random moments: lost is at most the work since the last save, and the end is the same.

A sweep (`gflow.sweep(folder=...)`, 24 limits in chunks of 4), a job (`gflow run`, 6 runs), and one
call each of `integrate`, `descend` and `find_limit` with a `checkpoint` run in processes of their
own. Each is ended by SIGKILL at a random moment of its life and started again,
until it has been killed as often as asked for; where it comes to its end before, a new one begins.
After each kill the files that are there are read. Three things must hold, or the script fails: no
file is damaged; what was kept before is still there; and no more was begun beyond what was kept
than a chunk, a run, a segment, or what a moment of a search is inside of. At the end the numbers
are, bit for bit, those of a process that nobody killed.

    python benchmarks/kill_harness.py [--kills 50] [--only NAME] [--smoke] [--output results.json]
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import run_benchmark, show
from _kept_calls import INSIDE, call_command, call_kept

import gflow
from gflow._archive import read_archive
from gflow.report.end import load_end

KILLS, FEW_KILLS = 50, 1
# In small form one of each kind of target.
FEW_TARGETS = ("sweep", "run", "integrate")
ONLY: str | None = None
CHUNK = 4
COLUMNS = ("target", "kill", "seconds", "kept", "begun", "lost")

SWEEP = """
import functools
import sys
import jax
jax.config.update("jax_enable_x64", True)
import gflow
from gflow.sweeps import searching

search = searching.find_limits
@functools.wraps(search)
def told(problems, *arguments, **options):
    print("begun", len(problems), flush=True)
    return search(problems, *arguments, **options)
searching.find_limits = told

data = gflow.datasets.gaussian(10, 4, seed=0)
network = gflow.networks.deep_linear((4, 3, 1))
def make(radius, seed):
    attack = gflow.perturbations.fgm(radius)
    loss = gflow.losses.exponential()
    return gflow.Problem(network, data, loss=loss, perturbation=attack), network.init(seed)

settings = {"radius": [0.0, 0.05, 0.1], "seed": range(8)}
found = gflow.sweep(make, settings, folder=sys.argv[1], chunk=int(sys.argv[2]))
if len(found.arrived) < len(found):
    sys.exit(f"{found}: {found.failed[0].message}")
"""

JOB = """
seed = [0, 1]
[data]
kind = "gaussian"
n = 10
d = 4
[[network]]
kind = "deep_linear"
hidden = [3]
[[perturbation]]
kind = "fgm"
radius = [0.0, 0.05, 0.1]
[until]
log_loss = -5.0
"""


class Target(NamedTuple):
    """What is killed.

    Attributes:
        name: of it.
        command: that begins it in a folder, or goes on there.
        kept: what is saved in the folder, by name, as checksums; raises where a file is damaged.
        begun: units of work that a process began, told from its output.
        unit: how many of these may be lost.
    """

    name: str
    command: Callable[[Path], list[str]]
    kept: Callable[[Path], dict[str, str]]
    begun: Callable[[str], int]
    unit: int


def sweep_command(folder: Path) -> list[str]:
    return [sys.executable, "-c", SWEEP, str(folder), str(CHUNK)]


def sweep_kept(folder: Path) -> dict[str, str]:
    """Every finished run; damage raises."""
    if not (folder / "sweep.npz").exists():
        return {}
    runs = gflow.Sweep.load(folder)
    return {str(i): _checksum(_numbers(run.limit)) for i, run in enumerate(runs) if run.limit}


def _numbers(limit: Any) -> list[Any]:
    """Everything of a limit that does not depend on the time that it took."""
    run = limit.trajectory
    return [
        *(np.asarray(leaf) for leaf in limit.direction),
        np.array([limit.margin, limit.certificate.stationarity, limit.handover_stationarity]),
        limit.certificate.multipliers,
        run.vectors,
        *run.columns.values(),
        np.array([stage.num_steps for stage in limit.stages]),
    ]


def run_command(folder: Path) -> list[str]:
    begin = [sys.executable, "-m", "gflow", "run", "--jobs", "1", "--no-report"]
    if (folder / "results.json").exists():
        return [*begin, "--resume", str(folder)]
    job = folder.with_suffix(".toml")
    job.write_text(JOB)
    return [*begin, str(job), "--output", str(folder)]


def run_kept(folder: Path) -> dict[str, str]:
    """Every finished run; damage of any file raises."""
    for path in [*folder.glob("trajectories/*.npz"), *folder.glob("evaluations/*.npz")]:
        read_archive(path)
    if (folder / "results.json").exists():
        json.loads((folder / "results.json").read_text())
    return {path.name: _checksum(_end(path)) for path in folder.glob("ends/*.npz")}


def _end(path: Path) -> list[Any]:
    end = load_end(path)
    figures = sorted(end.record.figures.items())
    arrays = [end.stopped, end.limit, end.multipliers, end.perturbations]
    return [np.array([repr(figures)]), *(each for each in arrays if each is not None)]


def _checksum(arrays: list[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


TARGETS = (
    Target(
        "sweep",
        sweep_command,
        sweep_kept,
        lambda text: sum(int(line.split()[1]) for line in text.splitlines() if "begun" in line),
        CHUNK,
    ),
    Target(
        "run",
        run_command,
        run_kept,
        # A line when a run begins; those of evaluations are no runs.
        lambda text: sum(
            line.startswith("[") and "compiling" in line for line in text.splitlines()
        ),
        1,
    ),
    *(
        Target(
            name,
            partial(call_command, name),
            call_kept,
            lambda text: text.splitlines().count("begun"),
            INSIDE if name == "find_limit" else 1,
        )
        for name in ("integrate", "descend", "find_limit")
    ),
)


def measure(smoke: bool, kills: int) -> dict[str, Any]:
    show({}, COLUMNS, header=True)
    with tempfile.TemporaryDirectory() as place:
        names = (ONLY,) if ONLY else FEW_TARGETS if smoke else [each.name for each in TARGETS]
        targets = [each for each in TARGETS if each.name in names]
        return {each.name: killed(each, Path(place), kills) for each in targets}


def killed(target: Target, place: Path, kills: int) -> dict[str, Any]:
    """One target, killed so often, beside one that is left alone."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(place / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    run(target, place / "cold", environment)
    begun = time.perf_counter()
    run(target, place / f"{target.name}-alone", environment)
    whole = time.perf_counter() - begun
    expected = target.kept(place / f"{target.name}-alone")
    assert expected, "nothing was kept, so that nothing would be compared"
    shutil.rmtree(place / "cold")
    moments, rows, rounds = random.Random(0), [], 0
    while len(rows) < kills:
        folder = place / f"{target.name}-{rounds}"
        rounds += 1
        while len(rows) < kills:
            row = kill_once(target, folder, environment, moments.uniform(0, whole))
            if row is None:
                break
            rows.append({"target": target.name, "kill": len(rows) + 1} | row)
            show(rows[-1], COLUMNS)
        run(target, folder, environment)
        if target.kept(folder) != expected:
            raise AssertionError(f"{target.name}: the end differs from that without a kill.")
        shutil.rmtree(folder)
    most = max(row["lost"] for row in rows)
    return {
        "kills": len(rows),
        "ends_compared": rounds,
        "runs": len(expected),
        "seconds_alone": whole,
        "most_lost": most,
        "allowed": target.unit,
        "rows": rows,
    }


def run(target: Target, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        target.command(folder), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"{target.name} ended with {done.returncode}: {done.stderr}")


def kill_once(
    target: Target, folder: Path, environment: dict[str, str], seconds: float
) -> dict[str, Any] | None:
    """Kills a process after so many seconds; None where it came to its end before."""
    before = target.kept(folder)
    output = folder.with_suffix(".txt")
    with output.open("w") as stream:
        child = subprocess.Popen(
            target.command(folder), env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        else:
            if child.returncode == 0:
                return None
            raise AssertionError(f"{target.name}: {output.read_text()}")
    kept, begun = target.kept(folder), target.begun(output.read_text())
    lost = max(begun - (len(kept) - len(before)), 0)
    if not before.items() <= kept.items():
        raise AssertionError(f"{target.name}: what was kept is gone, or has changed.")
    if lost > target.unit:
        raise AssertionError(f"{target.name}: {lost} were lost, at most {target.unit} may be.")
    return {"seconds": seconds, "kept": len(kept), "begun": begun, "lost": lost}


def option(name: str) -> str:
    """The value of an option, which is taken off the command line."""
    place = sys.argv.index(name)
    sys.argv.pop(place)
    return sys.argv.pop(place)


if __name__ == "__main__":
    if "--kills" in sys.argv:
        KILLS = int(option("--kills"))
    if "--only" in sys.argv:
        ONLY = option("--only")
    run_benchmark(__doc__ or "", lambda smoke: measure(smoke, FEW_KILLS if smoke else KILLS))
