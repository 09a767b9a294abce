"""Does a run circle? Under frozen perturbations the flow is no gradient flow, and need not rest.

Where a rest point is left along a pair of complex eigenvalues, the direction spirals away from it,
and where it stays nearby nevertheless, on a limit cycle or something like it, it has no limit: its
turns neither shrink nor move on.
"""

import math
from typing import NamedTuple

import numpy as np

# In each of the last two quarters of a run: the path is longer than so many diameters, pi for one
# turn of a circle; and the median cosine between successive displacements, below 0 for what
# rounding or too long steps throw to and fro.
_LONG, _RESOLVED = 4.0, 0.3
# From the one to the other the mean radius neither shrinks nor grows by more than this factor, and
# the centre moves by less than this part of it.
_STEADY, _STANDS = 1.5, 0.5
# Fewer points a quarter do not tell.
_FEWEST, _TINY = 16, 1e-300


class Circling(NamedTuple):
    """How a run circles, over its last half.

    Attributes:
        num_turns: to and fro along the direction in which it varies most.
        radius: mean distance from there, of directions of norm 1.
        speed: how far the direction moves while |params| grows by a factor e.
        margin: the smallest normalized margin on the way.
        log_growth: by how much log |params| grew.
    """

    num_turns: float
    radius: float
    speed: float
    margin: float
    log_growth: float


def circling(points: np.ndarray, log_norm: np.ndarray, margin: np.ndarray) -> Circling | None:
    """How a run circles, or None where it does not.

    Args:
        points: its directions, of norm 1. Shape (s, P).
        log_norm, margin: log |params| and the normalized margin there. Shapes (s,).
    """
    half = len(points) // 2
    third, fourth = np.array_split(points[half:], 2)
    if min(len(third), len(fourth)) < _FEWEST:
        return None
    first, second = _turning(third), _turning(fourth)
    steady = max(first.radius, second.radius) < _STEADY * min(first.radius, second.radius)
    stands = np.linalg.norm(first.centre - second.centre) < _STANDS * second.radius
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


def _turning(points: np.ndarray) -> _Turning:
    centre = points.mean(axis=0)
    offsets, steps = points - centre, np.diff(points, axis=0)
    along = offsets @ np.linalg.svd(offsets, full_matrices=False)[2][0]
    lengths = np.linalg.norm(steps, axis=1)
    cosines = np.sum(steps[1:] * steps[:-1], axis=1) / np.maximum(lengths[1:] * lengths[:-1], _TINY)
    radii = np.linalg.norm(offsets, axis=1)
    circles = lengths.sum() > _LONG * 2 * radii.max() and np.median(cosines) > _RESOLVED
    num_turns = 0.5 * np.count_nonzero(np.diff(np.sign(along)))
    return _Turning(centre, float(radii.mean()), float(num_turns), bool(circles))
