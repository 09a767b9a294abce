"""Points of a descent between its saved ones."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from gflow._numerics import tree_norm
from gflow._typing import Params
from gflow.trajectory import Trajectory


def read_between(trajectory: Trajectory, index: int, name: str, target: float) -> Params:
    """The point on the straight line between two saved points where the quantity has the value."""
    before = trajectory.params_at_index(index)
    after = trajectory.params_at_index(index + 1)

    def between(share: float) -> Params:
        return jax.tree.map(lambda a, b: (1 - share) * np.asarray(a) + share * b, before, after)

    if name == "time":
        # (t - t_0) / (t_1 - t_0) from the logarithms: 1 + t_1 may exceed the largest double.
        start, end = trajectory.log1p_time[index : index + 2]
        with np.errstate(over="ignore"):
            return between(np.expm1(np.log1p(target) - start) / np.expm1(end - start))
    problem = trajectory.require_problem()

    def excess(share: float) -> float:
        if name == "log_loss":
            return float(problem.log_loss(between(share))) - target
        length = tree_norm(jax.tree.map(jnp.asarray, between(share)))
        return problem.degree * float(jnp.log(length)) - target

    # The ends bracket the value; at the very end it may be met to rounding only.
    if excess(0.0) * excess(1.0) >= 0:
        return between(1.0)
    return between(float(brentq(excess, 0.0, 1.0)))  # pyright: ignore[reportArgumentType]
