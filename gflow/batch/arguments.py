"""The arguments of `find_limits`; wrong ones are refused by name."""

from typing import Any

import jax
from jax.sharding import Mesh

from gflow._checks import is_integer, is_list
from gflow.problem import Problem
from gflow.progress import check_progress


def listed(name: str, values: Any) -> list[Any]:
    """The values of an argument that is a list."""
    if not is_list(values):
        kind = type(values).__name__
        raise TypeError(f"`find_limits({name}=...)`: a {kind} is no list; give one for each run.")
    return list(values)


def check_runs(
    problems: list[Any], starts: list[Any], chunk: Any, mesh: Any, progress: Any
) -> None:
    """Refuses, by the name of the argument, what cannot be meant."""
    if len(problems) != len(starts):
        raise ValueError(
            f"`find_limits(problems, starts)`: {len(problems)} problems and {len(starts)} starts; "
            "give one start for each problem."
        )
    for index, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise TypeError(
                f"`find_limits(problems, ...)`: problems[{index}] is a {type(problem).__name__}, "
                "expected a `gflow.Problem`."
            )
    check_layout(chunk, mesh, "find_limits", "chunk")
    if mesh is not None:
        _check_mesh(mesh, problems)
    check_progress(progress, "find_limits")


def check_layout(chunk: Any, mesh: Any, call: str, name: str) -> None:
    """Refuses what says how runs are searched side by side; `name` is what `call` calls `chunk`."""
    if chunk is not None and (not is_integer(chunk) or chunk < 1):
        raise ValueError(f"`{call}({name}={chunk!r})` must be None or a positive integer.")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"`{call}(mesh={mesh!r})` must be None or a `jax.sharding.Mesh`.")


def _check_mesh(mesh: Any, problems: list[Problem]) -> None:
    """Refuses axes without a meaning, devices of other processes, and examples left over."""
    if not 1 <= len(mesh.axis_names) <= 2:
        raise ValueError(
            f"`find_limits(mesh=...)` has {len(mesh.axis_names)} axes; give one, for the runs, or "
            "two, the second one for the examples."
        )
    if any(each.process_index != jax.process_index() for each in mesh.devices.flat):
        raise ValueError(
            "`find_limits(mesh=...)` holds devices of other processes: give one of "
            "`jax.local_devices()`. `gflow.sweep(distributed=True)` spreads runs over processes."
        )
    shared = mesh.shape[mesh.axis_names[1]] if len(mesh.axis_names) == 2 else 1
    for index, problem in enumerate(problems):
        if len(problem.dataset) % shared:
            raise ValueError(
                f"`find_limits(mesh=...)`: the {len(problem.dataset)} examples of "
                f"problems[{index}] cannot be spread evenly over {shared} devices."
            )
