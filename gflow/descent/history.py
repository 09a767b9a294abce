"""The points of a run on the host, thinned so that memory stays bounded, and measured in the end.

Most points that a run lays aside are dropped again when the stride doubles. So only those that are
left are measured, by a program of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._numerics import unit
from gflow._programs import compiled
from gflow.descent.stepping import Saved
from gflow.measures import PointMeasures, measure_point
from gflow.problem import Problem
from gflow.record import Row, columns_of

# A buffer of saved points holds so many bytes at most, and so many points: each segment fills a new
# one, and what caches hold is filled fastest.
_BYTES, _POINTS = 2**21, 1024


def capacity(num_params: int) -> int:
    """Points that the buffer of a compiled segment holds: few where the parameters are many."""
    return int(np.clip(_BYTES // (8 * num_params), 8, _POINTS))


class _Measured(NamedTuple):
    """What is measured of points, along a leading axis."""

    direction: Float[Array, "..."]
    log_norm: Float[Array, "..."]
    measures: PointMeasures


class HistoryMemory(NamedTuple):
    """What a history holds.

    Attributes:
        stride: every so many steps are held.
        chunks: the points held but the last one.
        last: the last one.
    """

    stride: int = 1
    chunks: tuple[Saved, ...] = ()
    last: Saved | None = None

    def pieces(self) -> dict[str, Saved]:
        """All that there is of `points`, in one, and of `last`, by these names."""
        found = {"points": _joined(self.chunks)} if self.chunks else {}
        return found if self.last is None else found | {"last": self.last}

    @classmethod
    def of(cls, stride: int, pieces: Mapping[str, Saved]) -> "HistoryMemory":
        """The inverse of `pieces`."""
        chunks = (pieces["points"],) if "points" in pieces else ()
        return cls(stride, chunks, pieces.get("last"))


class History:
    """Saved points. Once `limit` are held, every second one is dropped, and from then on only every
    `stride`-th step is saved, with the stride doubled.

    Args:
        limit: the number of points to hold at most; None for all.
        memory: what a run that goes on had held.
    """

    def __init__(self, limit: int | None, memory: HistoryMemory):
        self.limit = limit
        self.stride = memory.stride
        self._chunks = list(memory.chunks)
        self._held = sum(len(chunk.num_steps) for chunk in self._chunks)
        self._last = memory.last

    def memory(self) -> HistoryMemory:
        """What is held."""
        return HistoryMemory(self.stride, tuple(self._chunks), self._last)

    def extend(self, saved: Saved, count: int) -> None:
        """Adds the first `count` points. The last of them starts the next segment, which hands it
        in again if it is on the stride.
        """
        arrays = Saved(*map(np.asarray, saved))  # pyright: ignore[reportArgumentType]
        self._last = _rows(arrays, slice(count - 1, count))
        self._chunks.append(_rows(arrays, slice(0, count - 1)))
        self._held += count - 1
        while self.limit is not None and self._held >= self.limit:
            self.stride *= 2
            together = _joined(self._chunks)
            kept = _rows(together, together.num_steps % self.stride == 0)
            self._chunks, self._held = [kept], len(kept.num_steps)

    def all(self) -> Saved:
        """Every point held, the first and the last one among them."""
        return _joined([*self._chunks, *([] if self._last is None else [self._last])])

    def status(self, problem: Problem, layout: Layout) -> dict[str, Any]:
        """What a progress line shows of the latest point."""
        assert self._last is not None
        columns, _ = measured(problem, layout, self._last)
        names = ("log_kappa", "log_loss", "margin", "stationarity")
        return {
            "steps": int(self._last.num_steps[0]),
            **{name: float(columns[name][0]) for name in names},
        }


def _rows(saved: Saved, which: Any) -> Saved:
    # Copies, so that the buffers that they come from can go.
    return Saved(*(np.array(leaf[which]) for leaf in saved))  # pyright: ignore[reportArgumentType]


def _joined(chunks: Sequence[Saved]) -> Saved:
    joined = (np.concatenate(leaves) for leaves in zip(*chunks, strict=True))
    return Saved(*joined)  # pyright: ignore[reportArgumentType]


def measured(
    problem: Problem, layout: Layout, saved: Saved
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """The columns of a trajectory, and the directions (s, P)."""
    count, chunk = len(saved.num_steps), capacity(layout.size)
    parts = []
    for start in range(0, count, chunk):
        given = np.asarray(saved.vector[start : start + chunk])
        # The same shape in every call, however few there are.
        filled = np.concatenate([given, np.zeros((chunk - len(given), layout.size))])
        found = _measured(problem, layout, jnp.asarray(filled), np.int64(len(given)))
        parts.append(jax.tree.map(lambda leaf, end=count - start: np.asarray(leaf)[:end], found))
    direction, log_norm, measures = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    times = np.asarray(saved.log1p_time)
    state = np.concatenate([direction, log_norm[:, None], times[:, None]], axis=1)
    # Descent has neither a clock of its own nor a step on it.
    parts: list[Any] = [np.zeros(count), np.zeros(count), np.asarray(saved.num_steps), state]
    return columns_of(Row(*parts, measures=measures), problem.degree)


def finite_part(
    columns: Mapping[str, np.ndarray], vectors: np.ndarray
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """Without the points that are not finite, or whose loss is not; the first point stays."""
    kept = np.all(np.isfinite(vectors), axis=1) & ~np.isposinf(columns["log_loss"])
    kept &= np.isfinite(columns["log_norm"]) & np.isfinite(columns["log1p_time"])
    kept[0] = True
    return {name: values[kept] for name, values in columns.items()}, vectors[kept]


@compiled
def _measured(
    problem: Problem, layout: Layout, vectors: Float[Array, "m P"], count: Any
) -> _Measured:
    """Directions, log-norms and measures of the first `count` points, one by one."""

    def one(vector: Array) -> _Measured:
        direction, length = unit(layout.unflatten(vector))
        log_norm = jnp.log(length)
        measures = measure_point(problem, direction, problem.degree * log_norm)
        return _Measured(layout.flatten(direction), log_norm, measures)

    def body(index: Array, found: _Measured) -> _Measured:
        new = one(vectors[index])
        return jax.tree.map(lambda all_, leaf: all_.at[index].set(leaf), found, new)

    shapes = jax.eval_shape(one, jnp.zeros(layout.size))
    empty = jax.tree.map(lambda leaf: jnp.zeros((len(vectors), *leaf.shape)), shapes)
    return lax.fori_loop(jnp.zeros((), jnp.int64), count, body, empty)
