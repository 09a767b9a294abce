"""The sharpness of the loss along a run."""

from typing import Any

import numpy as np

from gflow._checks import is_integer
from gflow._interrupts import interruptible
from gflow._signatures import named
from gflow.measures import sharpness
from gflow.trajectory import Trajectory


@named()
@interruptible
def sharpness_along(run: Trajectory, *, num_points: int = 16) -> dict[str, np.ndarray]:
    """The sharpness of the loss at points of a run, evenly spread over those saved.

    Gradient descent with steps h comes to the edge of stability where `h * sharpness` comes to 2.

    Returns:
        Arrays over the points: `num_steps_at`, `log1p_time`, `log_loss`, and `sharpness`, that of
        the objective of the run, and of its mean over examples where the run has that.

    Raises:
        TypeError: `run` is no trajectory.
        ValueError: `num_points` is below 1.
        ArithmeticError: see `gflow.measures.sharpness`.
    """
    if not isinstance(run, Trajectory):
        raise TypeError(f"`sharpness_along({run!r})`: give a trajectory.")
    if not is_integer(num_points) or num_points < 1:
        raise ValueError(f"`sharpness_along(num_points={num_points!r})` must be at least 1.")
    chosen = np.unique(np.linspace(0, len(run) - 1, num_points).round().astype(int))
    options: Any = {
        "objective": run.settings.get("objective", "loss"),
        "mean": run.settings.get("mean", False),
    }
    problem = run.require_problem()
    values = [sharpness(problem, run.params_at_index(int(i)), **options) for i in chosen]
    names = ("num_steps_at", "log1p_time", "log_loss")
    return {**{name: run.columns[name][chosen] for name in names}, "sharpness": np.array(values)}
