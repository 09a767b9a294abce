"""Problems of one structure stacked into one, whose arrays have a leading axis for the runs."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gflow._layout import Layout
from gflow.problem import Problem, by_example

# Runs in one call of a program, and where fewer are left. Wider ones are no faster a run on one CPU
# core; every width is compiled by itself.
_WIDTHS = (16, 4)


class Runs(NamedTuple):
    """Runs of one structure.

    Attributes:
        problem: of all runs, its arrays stacked.
        layout: of the parameters of one.
        width: runs in one call of a program.
        mesh: over whose first axis they are spread, and over a second one the examples of each;
            None for one device.
    """

    problem: Problem
    layout: Layout
    width: int
    mesh: Mesh | None

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows, so many at once: those meant, and with repetitions to the width of a program.

        Few that are left are put into a narrower one.
        """
        for start in range(0, len(rows), self.width):
            meant = rows[start : start + self.width]
            narrow = self.mesh is None and len(meant) <= min(_WIDTHS) < self.width
            width = min(_WIDTHS) if narrow else self.width
            yield meant, np.resize(meant, width)

    def problems(self, rows: np.ndarray) -> Problem:
        """The stacked problem of some runs, on the devices."""
        problem = self.placed(taken_rows(self.problem, rows))
        if self.mesh is None or len(self.mesh.axis_names) == 1:
            return problem
        # The compiler makes collectives of sums over the examples.
        spread = NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))
        placed = [jax.device_put(each, spread) for each in by_example(problem)]
        return eqx.tree_at(by_example, problem, placed)

    def placed(self, tree: Any) -> Any:
        """Stacked arrays, spread over the mesh where there is one."""
        if self.mesh is None:
            return tree
        spread = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))
        return jax.tree.map(lambda leaf: jax.device_put(leaf, spread), tree)


def structure_of(problem: Problem, layout: Layout) -> Hashable:
    """What two runs must share to be parts of one program: all that is compiled into it."""
    leaves, structure = jax.tree.flatten(problem)
    shapes = tuple((np.shape(leaf), str(np.asarray(leaf).dtype)) for leaf in leaves)
    return structure, shapes, layout.structure, layout.shapes


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, every array with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def taken_rows(tree: Any, rows: np.ndarray) -> Any:
    """Some rows of stacked arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def row_of(tree: Any, row: int) -> Any:
    """One row of stacked arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[row], tree)


def spread_over(
    mesh: Mesh | None, function: Callable[..., Any], num_stacked: int
) -> Callable[..., Any]:
    """A function of arguments, of which the first so many are stacked, as each device, or each row
    of devices that share the examples, calls it for its own rows; the results are stacked too.
    """
    if mesh is None:
        return function

    def called(*arguments: Any) -> Any:
        name = mesh.axis_names[0]
        rows, all_ = PartitionSpec(name), PartitionSpec()
        specs = tuple(rows if i < num_stacked else all_ for i in range(len(arguments)))
        spread = {"in_specs": specs, "out_specs": rows, "axis_names": {name}}
        # Not checked, since constants of the function are the same for all rows, and pass for that.
        return jax.shard_map(function, mesh=mesh, check_vma=False, **spread)(*arguments)

    return called


def default_width() -> int:
    """Runs in one call of a program where the caller names no number."""
    return max(_WIDTHS) if jax.default_backend() == "cpu" else 256
