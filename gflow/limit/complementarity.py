"""The equations at one smoothing with complementarity as an equation, and Newton's step for them.

At a smoothing mu, with `g_i = s (q_i - 1)`, s the size of the multipliers,

    theta + (theta - theta_0)/h = sum_i lambda_i grad q_i(theta, phi),
    lambda_i + g_i = sqrt(lambda_i^2 + g_i^2 + 2 nu),        (Fischer-Burmeister)
    v_k cos phi_k = mu w_k sin phi_k.

The second line is equivalent to `lambda_i g_i = nu` with both positive: for nu -> 0 the multiplier
or the slack is 0, so that the active set need not be known beforehand. The third line is the
equation of a switch (`gflow.kkt.switches`). Without an anchor theta_0 (h infinite) a solution is a
KKT point; with one it is a step of length h, from theta_0, of the implicit Euler method for the
flow `d theta/ds = -theta + sum_i lambda_i grad q_i`.

Source: Fischer 1992, "A special Newton-type optimization method", Optimization 24.
"""

import math
from typing import NamedTuple

import numpy as np

from gflow._minimum_norm import minimum_norm
from gflow.kkt.kinked_system import Residuals
from gflow.kkt.system import KKTSystem
from gflow.kkt.variables import Variables
from gflow.limit.settings import SmoothingSettings

# Stands for an entry of 0 in a denominator.
_TINY = 1e-200


class Anchor(NamedTuple):
    """Where a step of the flow began, and how long it is; `FREE` for no step at all."""

    theta: np.ndarray
    length: float


FREE = Anchor(np.zeros(()), math.inf)


class ComplementaritySystem:
    """The equations at an iterate: how far they are from solved, and Newton's step.

    Args:
        residuals: the KKT system at the iterate, without derivatives.
        index: the flat indices of the switches whose angles are unknown. Shape (k,).
        strength: s, the size of the multipliers.

    Attributes:
        error: the norm of the three parts, in units of |theta|, s and the switches' scales.
        near: margins whose multipliers are unknowns; of a system within a subspace not those
            `far_from_active`. Shape (m,).
    """

    def __init__(
        self,
        residuals: Residuals,
        variables: Variables,
        smoothing: float,
        index: np.ndarray,
        strength: float,
        anchor: Anchor,
        settings: SmoothingSettings,
    ):
        self.variables, self.index, self.anchor, self.settings = variables, index, anchor, settings
        values = residuals.values.ravel()[index]
        scales = residuals.scales.ravel()[index]
        # A switch of scale 0, all of whose weights are 0, has the value 0 at every angle.
        self.scales = np.where(scales > 0, scales, 1.0)
        widths, phi = smoothing * scales, variables.angles.ravel()[index]
        sine, cosine = np.sin(phi), np.cos(phi)
        turning = (values * cosine - widths * sine) / self.scales
        self.by_value, self.by_angle = cosine, -(values * sine + widths * cosine) / self.scales

        slack, lam = strength * (residuals.margins - 1), variables.multipliers
        nu = settings.rounding_off * smoothing * strength**2
        root = np.sqrt(lam**2 + slack**2 + 2 * nu) + 1e-300  # no division by 0 at lam = slack = 0
        self.by_multiplier, self.by_margin = 1 - lam / root, strength * (1 - slack / root)

        force = residuals.stationarity + (variables.theta - anchor.theta) / anchor.length
        parts = force, lam + slack - root, turning
        self.near = ~far_from_active(lam, residuals.margins, smoothing, strength, settings)
        self.right = -np.concatenate(parts)
        self.length, self.strength = float(np.linalg.norm(variables.theta)), strength
        units = self.length, strength, 1.0
        lengths = [np.linalg.norm(part) / unit for part, unit in zip(parts, units, strict=True)]
        self.error = float(np.linalg.norm(lengths))

    def matrix(self, at: KKTSystem) -> np.ndarray:
        """The Jacobian by (theta, lambda, phi), from that of the KKT system."""
        near = self.rows_of(at)
        size, count = len(at.hessian), np.count_nonzero(near)
        matrix = at.bordered(
            near,
            shift=1 / self.anchor.length,
            rows=self.by_margin[near],
            corner=self.by_multiplier[near],
        )
        matrix[size + count :] *= (self.by_value / self.scales)[:, None]
        turns = np.arange(size + count, len(matrix))
        matrix[turns, turns] += self.by_angle
        return matrix

    def step(self, at: KKTSystem) -> Variables | None:
        """The next iterate: by the step of minimum norm, angles kept within their range; None where
        it is too long.

        The norm is that of every weight in units of |theta| times its `_weight_units`, of
        multipliers in units of s, and of angles: whatever the units of the data, and however small
        a dead neuron, the system is as far from singular. In units of |theta| alone the rows of
        a dead neuron's switches, which are divided by their scales, would exceed all others by the
        inverse of its size, and the others would count as rounding.

        Args:
            at: the KKT system at the iterate, with the switches of `index`.
        """
        near, size = self.rows_of(at), len(at.stationarity)
        force, margins, turning = np.split(self.right, [size, size + len(near)])
        right = np.concatenate([at.coordinates(force), margins[near], turning])
        counts = len(at.hessian), int(np.count_nonzero(near)), len(self.index)
        units = np.repeat((self.length, self.strength, 1.0), counts)
        if at.basis is None:
            units[: counts[0]] *= self._weight_units(at)
        scaled = self.matrix(at) * units / units[:, None]
        solution = units * minimum_norm(scaled, right / units)
        inside, others = np.split(solution, [counts[0]])
        changes, turns = np.split(others, [counts[1]])
        theta, now = at.vectors(inside), self.variables
        multipliers = now.multipliers.copy()
        multipliers[near] += changes
        if not np.linalg.norm(theta) <= self.settings.longest_step * np.linalg.norm(now.theta):
            return None
        angles = now.angles.ravel().copy()
        phi, turn = angles[self.index], self.settings.turn
        lowest, highest = phi - turn * (np.pi / 2 + phi), phi + turn * (np.pi / 2 - phi)
        angles[self.index] = np.clip(phi + turns, lowest, highest)
        return Variables(now.theta + theta, multipliers, angles.reshape(now.angles.shape))

    def rows_of(self, at: KKTSystem) -> np.ndarray:
        """The margins that have a row in the matrix. Shape (m,)."""
        return np.ones_like(self.near) if at.basis is None else self.near

    def _weight_units(self, at: KKTSystem) -> np.ndarray:
        """The unit of every weight: about the size of its neuron relative to `|theta|`, at most 1.

        In these units no switch of the KKT system changes by more than its scale per unit, and no
        force on a weight by more than that weight's own unit, but for a factor that living weights
        have as well: so a dead neuron, whose forces are as small as its weights, is moved by its
        own weights as a living one is. Shape (P,).
        """
        if at.switches is None:
            return np.ones(len(self.variables.theta))
        units = self.scales[:, None] / np.maximum(self.length * np.abs(at.switches.rows), _TINY)
        units = units.min(axis=0, initial=1.0)
        coupled = np.abs(at.hessian)
        np.fill_diagonal(coupled, 0.0)
        largest = coupled.max(initial=_TINY)
        return np.minimum(
            units, (units[:, None] * (largest / np.maximum(coupled, _TINY))).min(axis=0)
        )


def far_from_active(
    multipliers: np.ndarray,
    margins: np.ndarray,
    smoothing: float,
    strength: float,
    settings: SmoothingSettings,
) -> np.ndarray:
    """Margins so far above 1, for their multipliers, that these no longer depend on them: in the
    solution `lambda_i = nu / g_i`. Shapes (m,).
    """
    slack = strength * (margins - 1)
    nu = settings.rounding_off * smoothing * strength**2
    return (slack > 0) & (multipliers**2 + 2 * nu <= settings.far * slack**2)
