"""The certificate of a point of the adversarial max-margin problem: what it says.

The problem is `min 1/2 |theta|^2 subject to y_i f(x_i + delta_i(theta); theta) >= 1`, whose KKT
points are the limits of the flow's direction (Lyu & Zhu 2022). At unit norm its conditions read
`u = sum_i lambda_i grad q_i(u)`, `lambda_i >= 0`, `lambda_i (q_i(u) - gamma) = 0`.
`gflow.kkt.certifying` computes it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gflow._description import plain


@dataclass(frozen=True, eq=False)
class Certificate:
    """Margins and KKT residuals of a point, computed from the point alone.

    They belong to the point's direction u; only `smoothed_margin` and what is computed with the
    flow's own multipliers (`flow_stationarity`, `kkt_epsilon`, `kkt_delta` and `cosine`) depend on
    its norm too.
    Where the examples are not separated (`separated` is False) there is no KKT system, and the
    quantities that belong to it are NaN.

    Attributes:
        separated: whether every adversarial margin is positive.
        normalized_margin: gamma = min_i q_i(u). Where the perturbation jumps at a kink of the
            network, rounding decides on which side it is taken; `Limit.margin` is the largest on
            any side.
        held_margin: the same with every switch held at `coefficients`, the margin of the KKT
            system; `normalized_margin` itself off the kinks.
        smoothed_margin: `l^{-1}(Loss) / kappa` at the point's own norm.
        clean_margin: min_i y_i f(x_i; u), without perturbation.
        strong_margin: the smallest margin that stronger attacks with the same radius find
            (projected gradient descent, 40 steps, from 0 and three random points; nothing but the
            training attack for orders other than 1, 2 and inf). Never above `normalized_margin` and
            `clean_margin`. If it is far below `normalized_margin`, the training attack is weak, or
            its gradients are masked.
        stationarity: `|u - sum_i lambda_i grad q_i(u)|` with the multipliers below; the norm of u
            is 1, so this is relative.
        total_stationarity: `|u - sum_i lambda_i dq_i/dtheta|` with the same multipliers and the
            margins' own derivatives, through the perturbations: `stationarity` itself where the
            problem's gradients are these. With frozen perturbations a rest point of adversarial
            training is a KKT point of the adversarial margin only if both residuals are 0.
        complementarity: `L sum_i lambda_i (q_i(u) - gamma)`; 0 if only the smallest margins have a
            multiplier. This and `stationarity` are computed with the coefficients below; where the
            attack has a kink the margins depend on these too, and gamma is `held_margin`. Other
            coefficients might give smaller residuals, but not where the gradients are affine in
            them, as with one hidden layer.
        dual_infeasibility: the most negative multiplier, as a positive number.
        multipliers: lambda, in the shape of the margins, by non-negative least squares on
            stationarity and complementarity together.
        coefficients: `sin phi` of every switch (`gflow.kkt.switches`), with which the gradients
            above are taken: its sign off the kink, and at it the number in [-1, 1] that makes the
            two residuals smallest. A ReLU has the slope `(1 + sin phi)/2`, a sign is `sin phi`.
            Shape (n, s); None where the problem has no kinks with names, or there is no KKT system.
        flow_stationarity: the same residual with the flow's own multipliers, `min_c |u - c h|`,
            `h = sum_i p_i grad q_i(u)`, p the weights of the loss at the point's norm.
        kkt_epsilon, kkt_delta: the (epsilon, delta)-KKT condition that the point satisfies, with
            `lambda_i = gamma^(1-2/L) p_i / |h|` at `theta = params / q_min^(1/L)`; for the
            exponential loss these are Lyu & Li 2020, Lemma C.8.
        cosine: `beta = cos(u, h)`.
        num_support: margins with a positive multiplier (above 1e-8 of the largest).
        kinks: examples, of those examined, whose margin has a kink at the point: a switch of a
            living neuron within 1e-9 of it, relative; or a kink without a name, which is found
            because gradients at random points on either side differ. For such a kink the least
            squares use the gradients on these sides, which are some members of the Clarke
            subdifferential.
        euler_error: deviation from Euler's identity `<grad q_i, u> = L q_i`, relative.
        scale_invariance_error: change of the perturbations under `params -> c params`, relative.
            At kinks it may be large without meaning, since rounding decides on which side each
            perturbation is taken.
        examined: multipliers were sought for so many of the smallest margins. If these are not all,
            the residuals are upper bounds.
    """

    separated: bool
    normalized_margin: float
    held_margin: float
    smoothed_margin: float
    clean_margin: float
    strong_margin: float
    stationarity: float
    total_stationarity: float
    complementarity: float
    dual_infeasibility: float
    multipliers: np.ndarray
    coefficients: np.ndarray | None
    flow_stationarity: float
    kkt_epsilon: float
    kkt_delta: float
    cosine: float
    num_support: int
    kinks: np.ndarray
    euler_error: float
    scale_invariance_error: float
    examined: int

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; None for numbers that are not finite."""
        return plain(asdict(self))

    def __repr__(self) -> str:
        state = "separated" if self.separated else "not separated"
        return (
            f"Certificate({state}, normalized_margin={self.normalized_margin:.6g}, "
            f"strong_margin={self.strong_margin:.6g}, stationarity={self.stationarity:.2g}, "
            f"complementarity={self.complementarity:.2g}, num_support={self.num_support}, "
            f"at a kink {len(self.kinks)})"
        )

    def __str__(self) -> str:
        state = "separated" if self.separated else "NOT separated: no KKT system"
        held = f"  with its kinks held  {self.held_margin:+.6e}\n" if len(self.kinks) else ""
        differs = self.total_stationarity != self.stationarity and self.separated
        total = f"  of the total gradient {self.total_stationarity:.3e}\n" if differs else ""
        return (
            f"Certificate ({state})\n"
            f"  normalized margin    {self.normalized_margin:+.6e}   smoothed "
            f"{self.smoothed_margin:+.6e}\n"
            f"{held}"
            f"  clean / strong       {self.clean_margin:+.6e} / {self.strong_margin:+.6e}\n"
            f"  stationarity         {self.stationarity:.3e}   with the flow's multipliers "
            f"{self.flow_stationarity:.3e}\n"
            f"{total}"
            f"  complementarity      {self.complementarity:.3e}   support {self.num_support}, "
            f"at a kink {len(self.kinks)}\n"
            f"  (epsilon, delta)-KKT ({self.kkt_epsilon:.3e}, {self.kkt_delta:.3e})\n"
            f"  Euler / scale error  {self.euler_error:.1e} / {self.scale_invariance_error:.1e}"
        )
