"""The record of a run on the host: saved points, thinned so that memory stays bounded."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.measures import PointMeasures

COLUMNS = (
    "clock",
    "step",
    "num_steps_at",
    "log_norm",
    "log_kappa",
    "log1p_time",
    "log_loss",
    "log_minus_log_loss",
    "margin",
    "clean_margin",
    "smoothed_margin",
    "stationarity",
    "strength",
)
"""What is recorded of every saved point, beside its direction."""


# Buffers of a compiled segment hold this many bytes at most, and this many rows.
_BUFFER_BYTES = 2**26
_BUFFER_ROWS = 256
# Steps of a first segment; the next ones are longer.
FIRST_STEPS = 16
# Weights times examples times gradients in a segment, at most: about a second on one CPU core.
_WORK = 5e8


class Row(NamedTuple):
    """What is recorded of a point; stacked along a leading axis where there are several.

    Attributes:
        clock: tau.
        step: the step that the integration tried from here, or made to here.
        num_accepted: accepted steps up to here.
        state: the point, with its direction normalized, and with log(1 + t).
        measures: what is measured of it.
    """

    clock: Float[Array, "..."]
    step: Float[Array, "..."]
    num_accepted: Int[Array, "..."]
    state: Float[Array, "... state"]
    measures: PointMeasures


def row_capacity(num_params: int) -> int:
    """Rows that a compiled segment's buffers hold: few where the parameters are many."""
    return int(np.clip(_BUFFER_BYTES // (24 * num_params), 8, _BUFFER_ROWS))


def steps_within_work(
    num_params: int, num_examples: int, evaluations: float, most: int | None = None
) -> int:
    """Steps of a compiled segment at most, from sizes that are known beforehand, so that what a run
    does depends on no clock: an interrupt, a deadline and the progress line wait for its end.

    Args:
        evaluations: gradients of all examples in a step.
        most: steps at most, however cheap they are; by default the rows of a buffer.
    """
    work = num_params * num_examples * evaluations
    return int(np.clip(_WORK / work, 1, most or row_capacity(num_params)))


def rows_of(columns: Mapping[str, np.ndarray], vectors: np.ndarray) -> Row:
    """The rows of a trajectory, stacked. The time that a cap leaves unknown is 0."""
    tail = np.stack([columns["log_norm"], np.nan_to_num(columns["log1p_time"])], axis=1)
    measures: list[Any] = [columns[name] for name in PointMeasures._fields]
    path: list[Any] = [columns[name] for name in ("clock", "step", "num_steps_at")]
    path.append(np.concatenate([vectors, tail], axis=1))
    return Row(*path, measures=PointMeasures(*measures))


def columns_of(rows: Any, degree: float) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """The columns of a trajectory, and the directions (s, P), from stacked rows.

    Args:
        degree: L, of the network.
    """
    log_norm, log1p_time = rows.state[:, -2], rows.state[:, -1]
    values = {
        "clock": rows.clock,
        "step": rows.step,
        "num_steps_at": rows.num_accepted,
        "log_norm": log_norm,
        "log_kappa": degree * log_norm,
        "log1p_time": log1p_time,
        **rows.measures._asdict(),
    }
    return {name: values[name] for name in COLUMNS}, rows.state[:, :-2]


def picked(rows: Row, which: Any) -> Row:
    """Some of stacked rows, or one of them: copies, so that the others can go."""
    return jax.tree.map(lambda leaf: np.array(leaf[which]), rows)


def joined(parts: Sequence[Row]) -> Row:
    """Stacked rows, one after another."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class Record:
    """Rows of a run. Once more than `limit` are held, every second one is dropped, and from then on
    only every `stride`-th accepted step is recorded, with the stride doubled.

    Whatever is held, the log-losses at the ends of segments are: what a run makes of them must not
    depend on the limit.

    Args:
        limit: the number of rows to hold at most; None for all.
        rows: of a run that goes on, stacked.
        stride: theirs.
        log_losses: of the segments behind them.
    """

    def __init__(
        self,
        limit: int | None,
        rows: Row | None = None,
        stride: int = 1,
        log_losses: Sequence[float] = (),
    ):
        self.limit = limit
        self.stride = stride
        # Stacked rows: those of each segment, or of all that were thinned.
        self._parts: list[Row] = [] if rows is None else [rows]
        self._last: Row | None = None
        self._log_losses = list(log_losses)
        self._thin()

    def extend(self, rows: Row, num_rows: int) -> Row:
        """Adds the first `num_rows` of stacked rows, and returns the last of them.

        The last row starts the next segment too, which hands it in again if it is on the stride.
        """
        count = int(num_rows)
        buffers = jax.tree.map(np.asarray, rows)
        self._parts.append(picked(buffers, slice(0, count - 1)))
        self._last = last = picked(buffers, count - 1)
        self._log_losses = self._log_losses or [float(self.first().measures.log_loss)]
        self._log_losses.append(float(last.measures.log_loss))
        self._thin()
        return last

    def _thin(self) -> None:
        while self.limit is not None and self._num_held() >= self.limit:
            self.stride *= 2
            rows = joined(self._parts)
            self._parts = [picked(rows, rows.num_accepted % self.stride == 0)]

    def _num_held(self) -> int:
        """Rows but the last one."""
        return sum(len(part.clock) for part in self._parts)

    def __len__(self) -> int:
        return self._num_held() + (self._last is not None)

    def first(self) -> Row:
        """The starting point."""
        return picked(self._all(), 0)

    def last(self) -> Row:
        """The latest point."""
        return picked(self._all(), -1) if self._last is None else self._last

    def log_losses(self) -> np.ndarray:
        """The log-loss at the start and at the end of every segment."""
        return np.asarray(self._log_losses)

    def only_first(self) -> None:
        """Forgets everything but the starting point."""
        self._parts, self._last = [], self.first()
        self._log_losses = self._log_losses[:1]

    def drop_nonfinite(self) -> None:
        """Drops points that are not finite, or whose loss is not; the starting point stays."""
        rows = self._all()
        finite = np.all(np.isfinite(rows.state), axis=1) & ~np.isposinf(rows.measures.log_loss)
        finite[0] = True
        rows = picked(rows, finite)
        self._parts, self._last = [picked(rows, slice(0, -1))], picked(rows, -1)

    def _all(self) -> Row:
        """All rows, stacked."""
        last = [] if self._last is None else [jax.tree.map(lambda leaf: leaf[None], self._last)]
        self._parts = [joined(self._parts)] if len(self._parts) > 1 else self._parts
        return joined([*self._parts, *last])

    def status(self, num_steps: int, degree: float) -> dict[str, Any]:
        """What a progress line shows of the latest point."""
        last = self.last()
        return {
            "stage": "flow",
            "steps": num_steps,
            "log_kappa": float(degree * last.state[-2]),
            "log_loss": float(last.measures.log_loss),
            "margin": float(last.measures.margin),
            "stationarity": float(last.measures.stationarity),
        }

    def columns(self, degree: float) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
        """The columns of a trajectory, and the directions (s, P)."""
        return columns_of(self._all(), degree)
