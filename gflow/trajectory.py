"""The outcome of a run, continuous or discrete: read at a time, a loss or a norm; saved, loaded."""

import contextlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gflow._archive import write_archive
from gflow._checks import check_unmasked
from gflow._description import plain
from gflow._files import checked_path
from gflow._layout import Layout
from gflow._signatures import named
from gflow._typing import Params
from gflow.checkpoint import Checkpoint
from gflow.problem import Problem
from gflow.record import COLUMNS
from gflow.results import RESULTS, Outcome
from gflow.stored import parts

HELD = 1e-8
"""So close to a target a run has met it, relative to the target (to 1, if that is larger), where no
step comes closer: the length of a step whose linear systems are solved inexactly does not decide
more digits. Other runs land on their targets to rounding."""

_ROUNDING = 1e-12

Reader = Callable[["Trajectory", int, str, float], Params]
"""`(trajectory, index, name, target)`: the parameters where the quantity `name` equals `target`,
between the saved points `index` and `index + 1`."""


class RunFailed(RuntimeError):
    """A run ended without reaching what was asked; `trajectory` holds all that was computed."""

    def __init__(self, trajectory: "Trajectory"):
        super().__init__(
            f"{trajectory.message} (log-loss {trajectory.log_loss[-1]:.4g}, normalized margin "
            f"{trajectory.margin[-1]:.4g} after {trajectory.stats['num_steps']} steps. The error's "
            "`trajectory` holds what was computed; `throw=False` returns it instead of raising.)"
        )
        self.trajectory = trajectory


@dataclass(frozen=True, eq=False)
class Trajectory(Outcome):
    """The record of a run.

    Each of the columns is an array over the s saved points, the first and the last point of the run
    among them:

        log_norm          log |params|_2
        log_kappa         L log |params|_2
        log1p_time        log(1 + t); t is the time of dparams/dt = -grad(sum loss), for descent the
                          sum of its step sizes
        log_loss          log sum_i l(q_i)
        margin            normalized adversarial margin min_i q_i(u)
        clean_margin      the same without perturbation
        smoothed_margin   l^{-1}(Loss) / kappa
        stationarity      |u - c sum_i p_i grad q_i(u)| for the best c: 0 at a KKT point
        strength          |sum_i p_i grad q_i(u)|
        num_steps_at      steps made up to the point
        clock, step       the integrator's own time tau, and its step there

    Attributes:
        kind: "flow", "descent", or "modified flow" from `gflow.backward_error_flow`.
        columns: the arrays above by name; each is an attribute too.
        vectors: (s, P) directions, flattened.
        layout: how the parameters lie in a vector.
        problem: the problem; None for one loaded from a file that could not hold it.
        result: a member of `RESULTS`.
        stats: counts and seconds.
        settings: the arguments of the run.
        reader: how it is read between two saved points.
        checkpoint: of a flow, from where `gflow.integrate(problem, trajectory, ...)` goes on bit
            for bit; None where that is not known, as in files of earlier versions.
    """

    kind: str
    columns: Mapping[str, np.ndarray]
    vectors: np.ndarray
    layout: Layout
    problem: Problem | None
    result: RESULTS
    stats: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    reader: Reader = field(repr=False, kw_only=True)

    def __getattr__(self, name: str) -> np.ndarray:
        if name in COLUMNS:
            return self.columns[name]
        raise AttributeError(f"a Trajectory has no `{name}`; its columns are {', '.join(COLUMNS)}.")

    def __len__(self) -> int:
        """Number of saved points."""
        return len(self.vectors)

    def __repr__(self) -> str:
        count = self.stats.get("num_chattering", 0)
        chattering = f", chattering examples: {count}" if count else ""
        return (
            f"Trajectory({self.kind}, {len(self)} points, log_loss={self.log_loss[-1]:.4g}, "
            f"log_kappa={self.log_kappa[-1]:.4g}, margin={self.margin[-1]:.4g}, "
            f"stationarity={self.stationarity[-1]:.2g}, result={self.result_name}{chattering})"
        )

    @property
    def successful(self) -> bool:
        """Whether the run reached what it was asked for."""
        return self.result_name == "successful"

    @property
    def directions(self) -> Params:
        """`u = params / |params|` at every saved point: the parameters' pytree, axis s first."""
        return self.layout.unflatten(self.vectors)

    @property
    def direction(self) -> Params:
        """`u` at the end."""
        return self.layout.unflatten(self.vectors[-1])

    @property
    def params(self) -> Params:
        """The parameters at the end, `rho u`."""
        return self.params_at_index(-1)

    def params_at_index(self, index: int) -> Params:
        """The parameters at a saved point; infinite where they leave the range of numbers."""
        return self.layout.unflatten(scaled(self.log_norm[index], self.vectors[index]))

    @named("trajectory.at")
    def at(
        self,
        *,
        time: Any = None,
        log_loss: Any = None,
        log_kappa: Any = None,
    ) -> Params:
        """The parameters at a time, at a log-loss or at a log kappa: exactly one of them.

        A flow is integrated again from the saved point before, so that the answer is as accurate as
        the run, however few points were saved. A descent is read on the straight line between its
        saved points. Where the quantity passes the value more than once, the first time counts
        that time or log kappa rises, or the log-loss falls, through it.

        Args:
            time: t of dparams/dt = -grad(sum loss).
            log_loss: `log sum_i l(q_i)`.
            log_kappa: `L log |params|`.

        Each may also be a sequence; the leaves then have its length as their first axis.

        Raises:
            TypeError: none or several of the arguments are given, or what is no number.
            ValueError: an empty sequence; the run did not pass this value.
        """
        given = {"time": time, "log_loss": log_loss, "log_kappa": log_kappa}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise TypeError("`trajectory.at(...)`: give one of `time`, `log_loss` and `log_kappa`.")
        ((name, value),) = given.items()
        _check_targets(name, value)
        if np.ndim(value) == 0:
            return self._at(name, float(value))
        found = [self._at(name, float(item)) for item in np.asarray(value)]
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *found)

    def _at(self, name: str, target: float) -> Params:
        values, target_value = self._progress(name, target)
        # The end lies on its own target only so closely. An infinite one has no distance from it.
        finite = np.isfinite(values[-1]) and np.isfinite(target_value)
        closely = HELD if self._ended_at(name, target_value) else _ROUNDING
        within = closely * max(1.0, abs(target_value))
        if finite and abs(values[-1] - target_value) <= within:
            target_value = min(target_value, float(values[-1]))
        if values[0] == target_value:
            return self.params_at_index(0)
        reached = 1 + np.flatnonzero((values[:-1] < target_value) & (values[1:] >= target_value))
        if not len(reached):
            column = self.columns["log1p_time" if name == "time" else name]
            with np.errstate(over="ignore"):
                low, high = (np.expm1(column) if name == "time" else column)[[0, -1]]
            raise ValueError(
                f"`trajectory.at({name}={target!r})`: the run goes from {name} {low:.6g} to "
                f"{high:.6g} and does not pass this value."
            )
        index = int(reached[0])
        if values[index] == target_value:
            return self.params_at_index(index)
        return self.reader(self, index - 1, name, target)

    def _ended_at(self, name: str, value: float) -> bool:
        """Whether the target that ended the run is this one, a value as of `_progress`."""
        if not self.successful or self.stats.get("stopped_by") != name:
            return False
        sign = -1.0 if name == "log_loss" else 1.0
        asked = self.settings["until"].get("log1p_time" if name == "time" else name)
        return asked is not None and sign * asked == value

    def _progress(self, name: str, target: float) -> tuple[np.ndarray, float]:
        """The column that belongs to `name`, and the target, so that both grow along the run."""
        if name == "time":
            return self.log1p_time, float(np.log1p(target)) if target > -1 else -np.inf
        sign = -1.0 if name == "log_loss" else 1.0
        return sign * self.columns[name], sign * target

    def measure(self, function: Callable[..., Any]) -> Any:
        """`function(problem, direction)` at every saved point, stacked along axis s.

        `function` is compiled once and runs point by point.

        Raises:
            TypeError: it is no function of these two.
        """
        _check_measure(function)
        problem = self.require_problem()
        each = jax.jit(lambda vectors: jax.lax.map(self._measured(function, problem), vectors))
        return jax.tree.map(np.asarray, each(self.vectors))

    def _measured(self, function: Callable[..., Any], problem: Problem) -> Callable[..., Any]:
        return lambda vector: function(problem, self.layout.unflatten(vector))

    def require_problem(self) -> Problem:
        """The problem.

        Raises:
            ValueError: it was not stored in the file.
        """
        if self.problem is None:
            raise ValueError(
                "This trajectory was loaded without its problem, because a file cannot hold a "
                "user's own function. Attach it: `gflow.load(path, problem=problem)`."
            )
        return self.problem

    def to_dict(self) -> dict[str, Any]:
        """Everything but the directions and the problem, as plain Python values.

        Numbers that are not finite become None, so that the result is JSON.
        """
        columns = {name: plain(values) for name, values in self.columns.items()}
        return {
            "kind": self.kind,
            "result": self.result_name,
            "message": self.message,
            "stats": plain(dict(self.stats)),
            "settings": plain(dict(self.settings)),
            **columns,
        }

    @named("trajectory.save")
    def save(self, path: str | os.PathLike) -> Path:
        """Writes the trajectory, its settings and its problem to one file (NumPy's .npz).

        It is written beside its place and renamed once it is on the disk: where that fails, as with
        a full disk, an earlier file of that name stays as it was.

        Args:
            path: the file; .npz is appended unless it ends in that. Its folder must exist.

        Returns:
            The path written.

        Raises:
            TypeError: `path` is no path; parameters in other containers than tuples, lists, dicts.
            ValueError: `path` names no file: it is empty, or ends like a folder.
            OSError: the file cannot be written; FileNotFoundError where its folder is missing.
        """
        path = checked_path(path, ".npz", "trajectory.save({!r})")
        write_archive(path, *parts(self))
        return path


def scaled(log_norm: Any, vector: np.ndarray) -> np.ndarray:
    """`exp(log_norm) vector`, whose zeros stay zeros however large the norm."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is meant, 0 * infinity is not
        return np.where(vector == 0, 0.0, np.exp(log_norm) * vector)


def _check_measure(function: Any) -> None:
    """Refuses what cannot be called with a problem and a direction."""
    fits = callable(function)
    if fits:
        with contextlib.suppress(ValueError):  # functions in C have no signature
            fits = _takes_two(inspect.signature(function))
    if not fits:
        raise TypeError(
            f"`trajectory.measure({function!r})`: give a function of a problem and a "
            "direction, such as `gflow.measures.smoothed_margin`."
        )


def _takes_two(signature: inspect.Signature) -> bool:
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def _check_targets(name: str, value: Any) -> None:
    call = f"`trajectory.at({name}={value!r})`"
    check_unmasked(value, call)
    try:
        values = np.asarray(value)
    except Exception as error:  # ragged lists
        raise TypeError(f"{call}: give a number or a sequence of numbers.") from error
    if values.ndim > 1 or values.size == 0:
        raise ValueError(f"{call}: give a number or a sequence of at least one number.")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{call}: give a number or a sequence of numbers.")
