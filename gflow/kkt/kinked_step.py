"""Newton's method for the equations at one smoothing, complementarity and all.

At a smoothing mu, with `g_i = s (q_i - 1)`, s the size of the multipliers,

    theta + (theta - theta_0)/h = sum_i lambda_i grad q_i(theta, phi),
    lambda_i + g_i = sqrt(lambda_i^2 + g_i^2 + 2 nu),        (Fischer-Burmeister)
    v_k cos phi_k = mu w_k sin phi_k.

Without an anchor theta_0 (h infinite) a solution is a KKT point; with one it is a step of length h
of the implicit Euler method for the flow `d theta/ds = -theta + sum_i lambda_i grad q_i`.
"""

import math
from typing import NamedTuple

import numpy as np

from gflow._least_norm import least_norm
from gflow.kkt.kinked_equations import Equations, Point

_LONGEST = 0.2
# Of the square of what rounds off complementarity, over mu s^2.
_ROUNDING_OFF = 1e-6
# How much of the way to the end of its range an angle may go in one iteration.
_TURN = 0.9


class Anchor(NamedTuple):
    """Where a step of the flow began, and how long it is; `FREE` for no step at all."""

    theta: np.ndarray
    length: float


FREE = Anchor(np.zeros(()), math.inf)


class System:
    """The equations at an iterate: how far they are from solved, and Newton's step.

    Args:
        at: the equations.
        index: the flat indices of the switches whose angles are unknown.
        strength: s, the size of the multipliers.
    """

    def __init__(
        self,
        at: Equations,
        point: Point,
        smoothing: float,
        index: np.ndarray,
        strength: float,
        anchor: Anchor,
    ):
        self.at, self.point, self.index, self.anchor = at, point, index, anchor
        self.strength = strength
        values = at.values.ravel()[index]
        self.sizes = at.scales.ravel()[index]
        widths = smoothing * self.sizes
        phi = point.angles.ravel()[index]
        self.turn = values * np.sin(phi) + widths * np.cos(phi), np.cos(phi)
        slack, lam = strength * (at.margins - 1), point.multipliers
        root = np.sqrt(lam**2 + slack**2 + 2 * _ROUNDING_OFF * smoothing * strength**2) + 1e-300
        self.by_multiplier, self.by_margin = 1 - lam / root, strength * (1 - slack / root)
        turning = (values * np.cos(phi) - widths * np.sin(phi)) / self.sizes
        pull = at.residual + (point.theta - anchor.theta) / anchor.length
        parts = pull, lam + slack - root, turning
        self.right = -np.concatenate(parts)
        units = np.linalg.norm(point.theta), strength, 1.0
        lengths = [np.linalg.norm(part) / unit for part, unit in zip(parts, units, strict=True)]
        self.error = float(np.linalg.norm(lengths))

    def matrix(self, jacobian: np.ndarray) -> np.ndarray:
        """The Jacobian of the system by (theta, lambda, phi), from that of its equations."""
        size, count = len(self.at.residual), len(self.at.margins)
        used = size + count + len(self.index)
        matrix = np.array(jacobian[:used, :used])
        matrix[np.arange(size), np.arange(size)] += 1 / self.anchor.length
        matrix[size : size + count] *= self.by_margin[:, None]
        rows = np.arange(size, size + count)
        matrix[rows, rows] += self.by_multiplier
        matrix[size + count :] *= (self.turn[1] / self.sizes)[:, None]
        rows = np.arange(size + count, used)
        matrix[rows, rows] -= self.turn[0] / self.sizes
        return matrix

    def step(self, jacobian: np.ndarray) -> Point | None:
        """The next iterate: of minimum norm, angles kept within their range; None if too long.

        Args:
            jacobian: of the equations, by the switches of `index` too.
        """
        solution = least_norm(self.matrix(jacobian), self.right)
        size, count = len(self.at.residual), len(self.at.margins)
        theta, multipliers, turns = np.split(solution, [size, size + count])
        point = self.point
        if not np.linalg.norm(theta) <= _LONGEST * np.linalg.norm(point.theta):
            return None
        angles = point.angles.ravel().copy()
        phi = angles[self.index]
        lowest, highest = phi - _TURN * (np.pi / 2 + phi), phi + _TURN * (np.pi / 2 - phi)
        angles[self.index] = np.clip(phi + turns, lowest, highest)
        return Point(
            point.theta + theta,
            point.multipliers + multipliers,
            angles.reshape(point.angles.shape),
        )
