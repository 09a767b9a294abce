"""`integrate`, `descend` and `find_limit` with a checkpoint, for `kill_harness.py`."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from gflow._archive import read_archive

INSIDE = 5
"""So many steps of a search a moment is inside of at most: the limit, the search, its approach, a
part of that, and a segment of the flow."""

# As many units as no call has: one that came to its end has all of its own.
_ALL = 100_000

CALL = """
import pathlib
import sys
import jax
jax.config.update("jax_enable_x64", True)
import diffrax
import optax
import gflow
from gflow.descent import run as descent
from gflow.flow import run as flow
from gflow.limit.journal import FileJournal

def told(function):
    def telling(*arguments, **options):
        print("begun", flush=True)
        return function(*arguments, **options)
    return telling

flow.advance, descent.advance = told(flow.advance), told(descent.advance)
step = FileJournal.step

def telling(journal, make):
    # A run of the flow is told by its segments.
    is_flow = getattr(getattr(make, "func", None), "__name__", "") == "_flow_run"
    return step(journal, make if is_flow else told(make))

FileJournal.step = telling

folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
keep = {"checkpoint": folder / "call.npz", "checkpoint_seconds": 0, "throw": False}
data = gflow.datasets.gaussian(40, 8, gap=0.3, seed=0)
network = gflow.networks.mlp((8, 12, 1), power=2)
attack = gflow.perturbations.fgm(0.05)
problem = gflow.Problem(network, data, loss=gflow.losses.logistic(), perturbation=attack)
start = network.init(0)
match sys.argv[2]:
    case "integrate":
        how = {"until": gflow.Until(log_loss=-1e4), "solver": diffrax.Tsit5()}
        gflow.integrate(problem, start, **how, **keep)
    case "descend":
        how = {"num_steps": 300_000, "batch_size": 7, "seed": 1}
        gflow.descend(problem, start, optax.sgd(1e-2, momentum=0.9), **how, **keep)
    case "find_limit":
        gflow.find_limit(problem, start, reproduce=True, **keep)
"""


def call_command(name: str, folder: Path) -> list[str]:
    """Begins the call in a folder, or goes on there."""
    return [sys.executable, "-c", CALL, str(folder), name]


def call_kept(folder: Path) -> dict[str, str]:
    """Every time that the call was kept, and its end; damage raises."""
    path = folder / "call.npz"
    if not path.exists():
        return {}
    header, arrays = read_archive(path)
    if not header["finished"]:
        return {str(number): "" for number in range(header["written"])}
    # The order in which arrays lie in a file is that in which their fields were set.
    found = sorted(hashlib.sha256(_bytes(array)).hexdigest() for array in arrays.values())
    return {str(number): "" for number in range(_ALL)} | {"end": "".join(found)}


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
