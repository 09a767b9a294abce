"""A KKT point, smooth or at kinks, and the evidence that it is one."""

from dataclasses import dataclass, field

import numpy as np

from gflow.kkt.system import KKTSystem
from gflow.kkt.variables import Variables


def _no_switches() -> np.ndarray:
    return np.zeros((0, 0))


@dataclass(frozen=True, eq=False, repr=False)
class KKTPoint:
    """A KKT point, or the last iterate of a method that was to find one.

    Attributes:
        theta: the point, at the norm where its active margins are 1. Shape (P,).
        multipliers: lambda, zero where not active. Shape (m,).
        active: the active set: margins with a multiplier. Shape (m,).
        residual: `max(|theta - sum_i lambda_i grad q_i| / |theta|, max_active |q_i - 1|)`.
        converged: residual within the tolerance, no negative multiplier, no violated margin; at
            kinks exact, and no switch on the wrong side.
        num_iterations: linear systems solved on the way.
        system: the KKT system there; None where its matrices were not formed.
        temperature: 1/s, s = kappa_c gamma, at which cooling ended; 0 for a point of the KKT system
            itself, infinite where not even the first temperature could be solved for.
        smoothing: mu, to which kinks are still rounded; 0 where they are exact, or there are none.
        coefficients: `sin phi` of every switch: -1 or +1 off its kink. Shape (n, s); empty without
            kinks.
        at_kink: the switches of active margins that stand on their kink. Shape (n, s).
    """

    theta: np.ndarray
    multipliers: np.ndarray
    active: np.ndarray
    residual: float
    converged: bool
    num_iterations: int
    system: KKTSystem | None
    temperature: float = 0.0
    smoothing: float = 0.0
    coefficients: np.ndarray = field(default_factory=_no_switches)
    at_kink: np.ndarray = field(default_factory=lambda: _no_switches() > 0)

    def __repr__(self) -> str:
        examples = self.examples
        shown = ", ".join(map(str, examples[:12])) + (", ..." if len(examples) > 12 else "")
        lines = [
            f"KKTPoint({'exact' if self.converged else 'NOT exact'}: residual {self.residual:.2g}, "
            f"smoothing {self.smoothing:.2g}, after {self.num_iterations} systems",
            f"  weights          {len(self.theta)}, |theta| = {np.linalg.norm(self.theta):.6g}",
            f"  active margins   {np.count_nonzero(self.active)} of {len(self.active)}",
        ]
        if self.has_switches:
            lines.append(
                f"  switches at kink {np.count_nonzero(self.at_kink)} of {self.at_kink.size}, "
                f"of {len(examples)} examples: {shown or 'none'}"
            )
        return "\n".join(lines) + ")"

    @property
    def direction(self) -> np.ndarray:
        """`theta / |theta|`. Shape (P,)."""
        return self.theta / np.linalg.norm(self.theta)

    @property
    def has_switches(self) -> bool:
        """Whether it is a point of a problem with kinks, whose switches are held."""
        return self.coefficients.size > 0

    @property
    def variables(self) -> Variables:
        """The point with its multipliers and angles."""
        angles = np.arcsin(np.clip(self.coefficients, -1.0, 1.0))
        return Variables(self.theta, self.multipliers, angles)

    @property
    def linearized(self) -> KKTSystem:
        """`system`, where it was formed."""
        if self.system is None:
            raise ValueError("This KKT point was found without forming the matrices of its system.")
        return self.system

    @property
    def jacobian(self) -> np.ndarray:
        """The bordered KKT matrix of the active margins and of the switches at kinks, by theta, the
        active multipliers and the angles there; theta in the coordinates of the system's basis.
        Shape (r, r).
        """
        return self.linearized.bordered(self.active)

    @property
    def examples(self) -> np.ndarray:
        """The examples that sit at a kink."""
        return np.flatnonzero(self.at_kink.any(axis=1))


def active_residual(
    stationarity: np.ndarray, margins: np.ndarray, theta: np.ndarray, active: np.ndarray
) -> float:
    """`max(|theta - sum_i lambda_i grad q_i| / |theta|, max_active |q_i - 1|)`."""
    relative = np.linalg.norm(stationarity) / np.linalg.norm(theta)
    return float(max(relative, np.max(np.abs(margins[active] - 1), initial=0.0)))
