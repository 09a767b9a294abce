"""Trained under x attacked by: every direction that training reached, under every attack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._archive import Damaged, read_archive, write_archive
from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls
from gflow.accuracy import under
from gflow.datasets import Dataset
from gflow.kkt.strong_attack import (
    PROJECTED_ORDERS,
    Ball,
    ball_of,
    smallest_margins,
    strongly_attacked,
)
from gflow.perturbations import AbstractPerturbation, Clean
from gflow.problem import Problem
from gflow.report.end import End
from gflow.trajectory import Trajectory

_FORMAT = 1
_ARRAYS = ("limit", "stopped", "accuracy")
# Two margins closer than this, relative, come from one limit.
_SAME = 1e-4
# Points of a flow at which every attack is tried, and the work that this may be: products.
_FEWEST_POINTS, _MOST_POINTS, _MOST_WORK = 8, 40, 2e11


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The directions of one network's runs, each under every attack.

    Attributes:
        network: its name.
        rows: the perturbations that it was trained under, r of them.
        columns: the attacks, c of them: those of training with exact signs, then the strong ones.
        balls: for each row and each column the `Ball` it keeps to; None for no perturbation.
        limit: normalized margins `min_i q_i(u)` at the limits. Shape (r, c); NaN where there is no
            limit.
        stopped: the same where the flows stopped. Shape (r, c); NaN where a flow did not come to
            where it was told to stop.
        accuracy: share of the examples held out that are classified rightly, at the limits. Shape
            (r, c); NaN where there is none.
        curves: of each row, the margins along its flow, under every attack but the strong ones.
            Shapes (points, c - strong).
        points: of each row, the indices of the trajectory's points. Shapes (points,).
    """

    network: str
    rows: list[str]
    columns: list[str]
    balls: dict[str, Ball | None]
    limit: np.ndarray
    stopped: np.ndarray
    accuracy: np.ndarray
    curves: list[np.ndarray]
    points: list[np.ndarray]

    @property
    def strong(self) -> list[str]:
        """The columns of strong attacks."""
        return self.columns[self.curves[0].shape[1] :]

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        balls = {
            name: None if ball is None else [str(ball.order), ball.radius, ball.box]
            for name, ball in self.balls.items()
        }
        header = {
            "format": _FORMAT,
            "network": self.network,
            "rows": self.rows,
            "columns": self.columns,
            "balls": balls,
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for i, (curve, points) in enumerate(zip(self.curves, self.points, strict=True)):
            arrays |= {f"curve_{i}": curve, f"points_{i}": points}
        write_archive(path, header, arrays)


def load_evaluation(path: Path) -> Evaluation:
    """What `Evaluation.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or a damaged one.
    """
    header, arrays = read_archive(path)
    if header.get("format") != _FORMAT:
        raise Damaged(f"`{path}` is no evaluation that this version can read")
    try:
        balls = {
            name: None if ball is None else Ball(float(ball[0]), ball[1], _pair(ball[2]))
            for name, ball in header["balls"].items()
        }
        count = range(len(header["rows"]))
        return Evaluation(
            network=header["network"],
            rows=header["rows"],
            columns=header["columns"],
            balls=balls,
            curves=[arrays[f"curve_{i}"] for i in count],
            points=[arrays[f"points_{i}"] for i in count],
            **{name: arrays[name] for name in _ARRAYS},
        )
    except (KeyError, TypeError, IndexError) as error:
        raise Damaged(f"`{path}` is no evaluation: {error}") from error


def _pair(box: Any) -> tuple[float, float] | None:
    return None if box is None else (float(box[0]), float(box[1]))


def _ball_of(attack: AbstractPerturbation) -> Ball | None:
    """The ball that an attack keeps to, as plain numbers; None where it does nothing."""
    ball = ball_of(attack)
    radius = float(ball.radius)
    return None if radius == 0 else Ball(float(ball.order), radius, _pair(ball.box))


def evaluate(
    network: str,
    problems: Mapping[str, Problem],
    ends: Mapping[str, End],
    trajectories: Mapping[str, Trajectory],
    attacks: Mapping[str, AbstractPerturbation],
    held_out: Dataset | None,
) -> Evaluation:
    """Attacks what every run of a network reached, by every attack.

    Args:
        network: its name.
        problems: of each perturbation that it was trained under, the problem.
        ends, trajectories: of those whose runs ended.
        attacks: by name, the same names.
        held_out: examples to tell the accuracy, or None.

    The strong attack is the smallest margin of each example among no perturbation, every attack in
    the ball, and projected gradient descent, 40 steps from 0 and from three random points; so it is
    for the orders 1, 2 and inf, to whose balls there is a projection.
    """
    rows = [name for name in problems if name in ends]
    layout, first = trajectories[rows[0]].layout, _attacked_one(problems)
    union = _union(first, held_out)
    points = [_points(trajectories[row], union, attacks, len(rows)) for row in rows]
    ended = _stacked(rows, ends)
    along = [trajectories[row].vectors[chosen] for row, chosen in zip(rows, points, strict=True)]
    vectors = jnp.asarray(np.concatenate([*ended, *along]))
    margins = {
        name: np.asarray(_margins(_attacked(union, attack, first), layout, vectors))
        for name, attack in attacks.items()
    }
    balls = {name: _ball_of(attack) for name, attack in attacks.items()}
    count = len(first.dataset)
    strong = _strong(union, layout, vectors[: 2 * len(rows)], margins, balls)
    every = [each[: 2 * len(rows)] for each in (*margins.values(), *strong.values())]
    least = _smallest_over([each[:, :count] for each in every])
    found = np.array([ends[row].limit is not None for row in rows])[:, None]
    arrived = found | np.array([trajectories[row].successful for row in rows])[:, None]
    accuracy = _accuracy([each[: len(rows), count:] for each in every])
    curves = _smallest_over([each[2 * len(rows) :, :count] for each in margins.values()])
    splits = np.cumsum([len(chosen) for chosen in points])[:-1]
    return Evaluation(
        network,
        rows,
        [*margins, *(ball.name for ball in strong)],
        balls | {ball.name: ball for ball in strong},
        np.where(found, least[: len(rows)], np.nan),
        np.where(arrived, least[len(rows) :], np.nan),
        np.where(found, accuracy, np.nan),
        np.split(curves, splits),
        points,
    )


def _attacked_one(problems: Mapping[str, Problem]) -> Problem:
    """One of the problems, with an attack if any has one: it tells which margin attacks lower."""
    attacked = (one for one in problems.values() if not isinstance(one.perturbation, Clean))
    return next(attacked, next(iter(problems.values())))


def _stacked(rows: Sequence[str], ends: Mapping[str, End]) -> list[np.ndarray]:
    """The limits, and where the flows stopped; in place of a limit that is missing the latter."""
    stopped = np.stack([ends[row].stopped for row in rows])
    limits = [ends[row].limit for row in rows]
    return [
        np.stack([s if u is None else u for u, s in zip(limits, stopped, strict=True)]),
        stopped,
    ]


def _union(problem: Problem, held_out: Dataset | None) -> Problem:
    """The problem with the examples held out behind its own: one program serves both."""
    if held_out is None:
        return problem
    data = problem.dataset
    x, y = np.concatenate([data.x, held_out.x]), np.concatenate([data.y, held_out.y])
    return under(problem, None, Dataset(x, y))


def _attacked(union: Problem, attack: AbstractPerturbation, own: Problem) -> Problem:
    """The problem under this attack, which starts on training examples as it does in training."""
    problem = under(union, attack)
    if problem.starts is None:
        return problem
    starts = np.array(problem.starts)
    starts[: len(own.dataset)] = attack.starts(*own.dataset.x.shape)
    return eqx.tree_at(lambda p: p.starts, problem, starts)


def _points(
    trajectory: Trajectory, union: Problem, attacks: Mapping[str, Any], num_rows: int
) -> np.ndarray:
    """Points spread over the run, so many that the attacks at all of them take seconds."""
    gradients = sum(1 + attack.num_gradients for attack in attacks.values())
    work = 4.0 * len(union.dataset) * trajectory.layout.size * gradients * num_rows
    most = int(np.clip(_MOST_WORK / work, _FEWEST_POINTS, _MOST_POINTS))
    last = len(trajectory) - 1
    return np.unique(np.linspace(0, last, min(most, last + 1)).round().astype(int))


def _least(margins: np.ndarray) -> np.ndarray:
    """The smallest margin of each example, over its classes. Shapes: (m, n, ...) to (m, n)."""
    return margins.reshape(*margins.shape[:2], -1).min(axis=2)


def _smallest_over(margins: Sequence[np.ndarray]) -> np.ndarray:
    """The smallest margin over all examples. Shapes: c attacks of (m, n, ...) to (m, c)."""
    return np.stack([_least(each).min(axis=1) for each in margins], axis=1)


def _accuracy(margins: Sequence[np.ndarray]) -> np.ndarray:
    """The share of examples that are classified rightly; NaN where there are none. Shapes: c
    attacks of (m, n, ...) to (m, c).
    """
    if not margins[0].shape[1]:
        return np.full((len(margins[0]), len(margins)), np.nan)
    return np.stack([np.mean(_least(each) > 0, axis=1) for each in margins], axis=1)


@compiled_for_few_calls
def _margins(problem: Problem, layout: Layout, vectors: Float[Array, "m P"]) -> Array:
    return jax.lax.map(lambda vector: problem.margins(layout.unflatten(vector)), vectors)


def _strong(
    union: Problem,
    layout: Layout,
    vectors: Float[Array, "m P"],
    margins: Mapping[str, np.ndarray],
    balls: Mapping[str, Ball | None],
) -> dict[Ball, np.ndarray]:
    """The smallest margins that any attack finds in each ball. Shapes: (m, n, ...)."""
    found = {}
    for ball in dict.fromkeys(one for one in balls.values() if one is not None):
        if ball.order not in PROJECTED_ORDERS:
            continue
        problem, starts = strongly_attacked(union, ball)
        least = np.asarray(_smallest(problem, layout, vectors, jnp.asarray(starts)))
        for name, each in margins.items():
            if balls[name] in (None, ball):
                least = np.minimum(least, each[: len(vectors)])
        found[ball] = least
    return found


@compiled_for_few_calls
def _smallest(
    problem: Problem, layout: Layout, vectors: Float[Array, "m P"], starts: Float[Array, "s n d"]
) -> Array:
    def least(vector: Array) -> Array:
        return smallest_margins(problem, layout.unflatten(vector), starts)

    return jax.lax.map(least, vectors)


def largest(values: Float[np.ndarray, "r c"]) -> np.ndarray:
    """Which entries are the largest of their column, to within what one limit gives twice."""
    filled = np.where(np.isfinite(values), values, -np.inf)
    top = filled.max(axis=0)
    return np.isfinite(filled) & (filled >= top - _SAME * np.abs(top))


def margins_shown(evaluation: Evaluation) -> np.ndarray:
    """The margins at the limits; where no run came to one, those where the flows stopped."""
    some = np.isfinite(evaluation.limit).any()
    return evaluation.limit if some else evaluation.stopped
