"""Attack orders 1 and inf, whose dual norms (max and sum of |w_j|) are linear on faces.

On a face, `w = T v` with orthonormal columns T and `|w|_q = <g, v>`, so the problem is a plain
hard-margin problem in v with rows `T^T z_i - radius g`. Two things decide the face:

- order inf (q = 1): the set of nonzero w_j and their signs; the others are exactly zero, with a
  subgradient in [-1, 1];
- order 1 (q = inf): the set of w_j that attain the maximum and their signs; they move together,
  with subgradients that have the signs of the w_j and sum to 1 in size.

A first guess names the face; the solution on it says which coordinate is on the wrong side.
"""

import math
from typing import NamedTuple

import numpy as np

from gflow.reference._least_norm import least_norm
from gflow.reference._nonnegative import nonnegative_least_squares
from gflow.reference._norms import Array
from gflow.reference._solution import Point

_MAX_FACES = 200
_TOLERANCE = 1e-11
_EPSILON = float(np.finfo(np.float64).eps)


class Face(NamedTuple):
    """Signs of the coordinates that are nonzero (order inf) or maximal (order 1), else 0.

    Shapes: signs (d,), in {-1, 0, +1}.
    """

    signs: Array
    order: float

    def basis(self) -> Array:
        """T: orthonormal columns that span the face. Shapes: (d, dimension of the face)."""
        named = self.signs != 0
        identity = np.eye(len(self.signs))
        if math.isinf(self.order):
            return identity[:, named]
        together = self.signs / np.sqrt(np.count_nonzero(named))
        return np.column_stack([identity[:, ~named], together])

    def slope(self) -> Array:
        """A vector with `<slope, T v> = |T v|_q` on the face. Shapes: (d,)."""
        return self.signs if math.isinf(self.order) else self.signs / np.abs(self.signs).sum()


def solve_on_faces(signed: Array, radius: float, start: Face) -> Point | None:
    """The KKT point reached by mending the face `start`; None if that face holds no solution.

    Stops short of a KKT point where mending leads to a face without a solution; the caller checks.

    Shapes: signed (n, d), rows `z_i = y_i x_i`.
    """
    face, point = start, None
    for _ in range(_MAX_FACES):
        solution = _solve_on_face(signed, radius, face)
        if solution is None:
            return point
        point, tolerance = solution
        signs = _mended_signs(face, point, tolerance)
        if np.array_equal(signs, face.signs):
            return point
        face = face._replace(signs=signs)
    return point


def _solve_on_face(signed: Array, radius: float, face: Face) -> tuple[Point, float] | None:
    """The solution on one face, and the rounding error of its subgradient."""
    basis = face.basis()
    solution = least_norm(signed @ basis - radius * (face.slope() @ basis))
    if solution is None:
        return None
    coordinates, multipliers = solution
    weights = basis @ coordinates
    force = radius * multipliers.sum()
    pull = multipliers @ signed
    slope = (pull - weights) / force
    rounding = 8 * _EPSILON * np.abs(pull).max() / force
    return Point(weights, slope, multipliers), _TOLERANCE + rounding


def _mended_signs(face: Face, point: Point, tolerance: float) -> Array:
    """The signs with the worst violated condition mended.

    One at a time, so that two cannot chase each other. Started at the face of the clean direction,
    718 of 720 Gaussian problems of both orders end at the solution so, 601 if all conditions are
    mended at once.
    """
    named = face.signs != 0
    if math.isinf(face.order):
        # A named coordinate must keep its sign; another one's subgradient must lie in [-1, 1].
        scale = np.abs(point.weights).max()
        leave = -face.signs * point.weights / scale
        enter, entering = np.abs(point.slope) - 1, point.slope
    else:
        # A maximal coordinate needs a subgradient of its own sign; no other may exceed them.
        largest = np.max(face.signs * point.weights)
        scale = np.abs(point.weights).max()
        leave = -face.signs * point.slope
        enter, entering = (np.abs(point.weights) - largest) / scale, point.weights
    violation = np.where(named, leave, enter)
    violated = violation > np.where(named == math.isinf(face.order), 1e-15, tolerance)
    signs = face.signs.copy()
    if violated.any():
        worst = np.argmax(np.where(violated, violation, -np.inf))
        signs[worst] = 0.0 if named[worst] else np.sign(entering[worst])
    return signs if signs.any() else face.signs


def face_of(weights: Array, slope: Array, order: float) -> Face:
    """The face of an approximate solution, by strict complementarity.

    Each coordinate is decided by which of its two conditions is further from an equality.
    """
    if math.isinf(order):
        named = np.abs(weights) / np.abs(weights).max() > 1 - np.abs(slope)
        signs = np.sign(weights)
    else:
        distance = 1 - np.abs(weights) / np.abs(weights).max()
        named = (np.abs(slope) > distance) | (distance == 0)
        signs = np.sign(weights)
    return Face(np.where(named, signs, 0.0), order)


def split_variables(signed: Array, radius: float) -> tuple[Array, Array] | None:
    """Order inf as one least-distance problem in `w = a - b`, a and b nonnegative.

        min 1/2 (|a|^2 + |b|^2)   subject to   <z_i, a - b> - radius sum_j (a_j + b_j) >= 1.

    At its solution one of a_j, b_j vanishes. Returns w and the multipliers of the margins; None if
    SciPy gives up.
    """
    num_rows, dim = signed.shape
    margins = np.hstack([signed - radius, -signed - radius])
    system = np.vstack([np.hstack([margins.T, np.eye(2 * dim)]), np.zeros(num_rows + 2 * dim)])
    system[-1, :num_rows] = 1.0
    target = np.zeros(2 * dim + 1)
    target[-1] = 1.0
    solution = nonnegative_least_squares(system, target)
    if solution is None:
        return None
    duals = solution[0]
    residual = system @ duals - target
    if not residual[-1] < 0:
        return None
    split = -residual[:-1] / residual[-1]
    return split[:dim] - split[dim:], duals[:num_rows] / -residual[-1]
