"""Convex references: where adversarial training drives a linear, or deep linear, network.

`max_margin(dataset, radius=..., order=...)` solves, without any training,

    max_{|w|_2 = 1}  min_i y_i <w, x_i> - radius |w|_q,      1/p + 1/q = 1, p = order.

Source: Lyu & Zhu 2022, "Implicit bias of adversarial training for deep neural networks"; for
radius 0 Soudry et al. 2018, "The implicit bias of gradient descent on separable data".
"""

from gflow.reference._max_margin import largest_feasible_radius, max_margin
from gflow.reference._solution import MaxMargin

__all__ = ["MaxMargin", "largest_feasible_radius", "max_margin"]
