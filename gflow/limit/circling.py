"""Whether a run circles, as the flow may under frozen perturbations, where it is no gradient flow.

Where a rest point is left along a pair of complex eigenvalues, the direction spirals away from it.
If it stays nearby all the same, as on a limit cycle, it has no limit. A run circles if its turns
neither shrink, as on the way to a rest point, nor move on, as in a drift.
"""

import math
from typing import NamedTuple

import numpy as np

from gflow.limit.search_settings import DEFAULT, CirclingSettings

# Stands for a length of 0 in a denominator.
_TINY = 1e-300


class Circling(NamedTuple):
    """How a run circles, over its last half.

    Attributes:
        num_turns: how often it moves to and fro along the direction in which it varies most.
        radius: mean distance from the centre, the mean of its points.
        speed: how far the direction moves while |params| grows by a factor e.
        margin: the smallest normalized margin on the way.
        log_growth: by how much log |params| grew.
    """

    num_turns: float
    radius: float
    speed: float
    margin: float
    log_growth: float


def circling(
    points: np.ndarray,
    log_norm: np.ndarray,
    margin: np.ndarray,
    *,
    settings: CirclingSettings = DEFAULT.circling,
) -> Circling | None:
    """How a run circles, or None where it does not.

    Args:
        points: its directions, of norm 1. Shape (s, P).
        log_norm, margin: log |params| and the normalized margin there. Shapes (s,).
        settings: what counts as circling.
    """
    half = len(points) // 2
    third, fourth = np.array_split(points[half:], 2)
    if min(len(third), len(fourth)) < settings.fewest:
        return None
    first, second = _turning(third, settings), _turning(fourth, settings)
    radii = first.radius, second.radius
    steady = max(radii) < settings.steady * min(radii)
    stands = np.linalg.norm(first.centre - second.centre) < settings.stands * second.radius
    if not (first.circles and second.circles and steady and stands):
        return None
    growth = float(log_norm[-1] - log_norm[half])
    path = np.linalg.norm(np.diff(points[half:], axis=0), axis=1).sum()
    return Circling(
        num_turns=first.num_turns + second.num_turns,
        radius=0.5 * (first.radius + second.radius),
        speed=float(path) / growth if growth > 0 else math.inf,
        margin=float(np.min(margin[half:])),
        log_growth=growth,
    )


class _Turning(NamedTuple):
    """How points turn about their centre."""

    centre: np.ndarray
    radius: float
    num_turns: float
    circles: bool


def _turning(points: np.ndarray, settings: CirclingSettings) -> _Turning:
    """How these points turn; they circle by the criteria `path` and `cosine` of the settings."""
    centre = points.mean(axis=0)
    offsets, steps = points - centre, np.diff(points, axis=0)
    radii, lengths = np.linalg.norm(offsets, axis=1), np.linalg.norm(steps, axis=1)
    cosines = np.sum(steps[1:] * steps[:-1], axis=1) / np.maximum(lengths[1:] * lengths[:-1], _TINY)
    is_long = lengths.sum() > settings.path * 2 * radii.max()
    # Along the direction in which the points vary most, a turn changes the sign twice.
    along = offsets @ np.linalg.svd(offsets, full_matrices=False)[2][0]
    num_turns = 0.5 * np.count_nonzero(np.diff(np.sign(along)))
    return _Turning(
        centre=centre,
        radius=float(radii.mean()),
        num_turns=float(num_turns),
        circles=bool(is_long and np.median(cosines) > settings.cosine),
    )
