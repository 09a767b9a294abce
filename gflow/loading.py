"""Reading a trajectory from its file.

It stands above the flow and the descent: each kind of trajectory is read between its saved points
in a way of its own, and the classes that a file holds by name are known once their modules have
been imported.
"""

import os
from typing import Any

import numpy as np

from gflow import descent
from gflow._archive import read_archive
from gflow._signatures import named
from gflow.descent import backward_error
from gflow.flow import reading
from gflow.problem import Problem
from gflow.stored import check_fits, restored
from gflow.trajectory import Reader, Trajectory

_READERS: dict[str, Reader] = {
    "flow": reading.read_between,
    "descent": descent.read_between,
    "modified flow": backward_error.read_between,
}


@named("gflow.load")
def load(path: str | os.PathLike, *, problem: Problem | None = None) -> Trajectory:
    """Reads a trajectory that `Trajectory.save` wrote.

    Args:
        path: the file.
        problem: the problem of the run; needed only where a file could not hold it, as with a
            user's own network.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `path` is no path, or `problem` no `Problem`.
        ValueError: it is no trajectory of gflow, or a damaged one; or `problem` is another than
            that of the run, since it has no margins at the parameters stored.
    """
    call = f"`gflow.load({str(path)!r})`"
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`gflow.load({path!r})`: give the path of a file.")
    if not (problem is None or isinstance(problem, Problem)):
        raise TypeError(f"{call}: `problem` is {problem!r}, expected a `gflow.Problem`.")
    try:
        found = trajectory_from(*read_archive(path), problem)
    except FileNotFoundError:
        raise
    # A damaged header can be anything, and so can what building on it raises.
    except Exception as error:
        raise ValueError(
            f"{call}: this is not a trajectory that gflow can read ({error})."
        ) from error
    if problem is not None:
        try:
            check_fits(problem, found.layout)
        except ValueError as error:
            raise ValueError(f"{call}: `problem` is not that of the run: {error}") from error
    return found


def trajectory_from(
    header: dict[str, Any], arrays: dict[str, np.ndarray], problem: Problem | None
) -> Trajectory:
    """The trajectory of a file's header and arrays; see `gflow.stored.restored`."""
    fields = restored(header, arrays, problem)
    return Trajectory(**fields._asdict(), reader=_READERS[fields.kind])
