"""A run of descent between two segments, and as the file of its checkpoint holds it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gflow._checks import is_key, on_host
from gflow.descent.history import HistoryMemory
from gflow.descent.reading import read_between
from gflow.descent.stepping import Point, Saved
from gflow.problem import Problem
from gflow.record import FIRST_STEPS
from gflow.results import STOPPED
from gflow.saving import Content
from gflow.stored import parts, restored
from gflow.trajectory import Trajectory


class Place(NamedTuple):
    """Where a run stands between two segments: all that is needed to go on, bit for bit.

    Attributes:
        point: with the optimizer's state.
        history: the points laid aside.
        length: steps of the next segment at most.
        first: the step from which the present table of batches is used.
        generator: the state of the generator of batches before it drew that table; None where
            there is none.
        seconds: that it took to come here.
    """

    point: Point
    history: HistoryMemory
    length: int = FIRST_STEPS
    first: int = 0
    generator: Mapping[str, Any] | None = None
    seconds: float = 0.0


def content_of(place: Place) -> Content:
    """The place as a file holds it."""
    leaves = jax.tree.leaves(place.point)
    arrays = {f"leaf{number}": on_host(leaf) for number, leaf in enumerate(leaves)}
    pieces = place.history.pieces()
    for name, piece in pieces.items():
        arrays |= {f"{name}_{key}": leaf for key, leaf in piece._asdict().items()}
    header = {
        "stride": place.history.stride,
        "pieces": list(pieces),
        "weak": [bool(getattr(leaf, "weak_type", False)) for leaf in leaves],
        "length": place.length,
        "first": place.first,
        "generator": place.generator,
        "seconds": place.seconds,
    }
    return Content(header, arrays)


def place_of(content: Content, blank: Point) -> Place:
    """The inverse.

    Args:
        blank: the point at which the run began, for the structure of the optimizer's state.

    Raises:
        ValueError: the optimizer's state is of another kind, as with another version of it.
    """
    header, arrays = content.header, content.arrays
    own, structure = jax.tree.flatten(blank)
    kept = [arrays[f"leaf{number}"] for number in range(len(header["weak"]))]
    shapes = [(leaf.shape, leaf.dtype) for leaf in map(on_host, own)]
    if shapes != [(leaf.shape, leaf.dtype) for leaf in kept]:
        raise ValueError(
            "`descend(checkpoint=...)`: the file was written with another version of the "
            "optimizer, whose state is of other shapes. Choose another file."
        )
    triples = zip(kept, own, header["weak"], strict=True)
    point = jax.tree.unflatten(structure, [_like(*triple) for triple in triples])
    pieces = {
        name: Saved(*(arrays[f"{name}_{key}"] for key in Saved._fields))
        for name in header["pieces"]
    }
    history = HistoryMemory.of(header["stride"], pieces)
    names = "length", "first", "generator", "seconds"
    return Place(point, history, *(header[name] for name in names))


def _like(kept: np.ndarray, own: Any, weak: bool) -> Any:
    """A leaf as it was, with the kind of `own`."""
    if is_key(own):
        return jax.random.wrap_key_data(jnp.asarray(kept), impl=jax.random.key_impl(own))
    # Scalars that came from Python's numbers are promoted by other rules.
    return jnp.asarray(kept.item()) if weak and not kept.ndim else jnp.asarray(kept)


def finished(trajectory: Trajectory) -> Content:
    """A run that came to its end, as a file holds it."""
    assert trajectory.result_name not in STOPPED
    return Content(*parts(trajectory), finished=True)


def finished_trajectory(problem: Problem, content: Content) -> Trajectory:
    """The inverse of `finished`, of a run of this problem."""
    fields = restored(content.header, dict(content.arrays), problem)
    return Trajectory(**fields._asdict(), reader=read_between)
