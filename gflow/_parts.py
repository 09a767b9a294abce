"""Checks of the parts of a problem: of the right kind, and in units that fit each other."""

import inspect
import sys
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer

from gflow import losses, networks, perturbations
from gflow._checks import one_of
from gflow._signatures import nearest
from gflow.datasets import Dataset
from gflow.losses import AbstractLoss
from gflow.networks import AbstractNetwork
from gflow.perturbations import AbstractPerturbation, Clean
from gflow.rivals import RIVALS, Rivals


class _Part(NamedTuple):
    """What is said of a part that is of another kind.

    Attributes:
        kind: its class.
        maker: what makes one.
        module: where the makers are; empty for the data set.
        names: the makers.
        own: what to do with a function of one's own.
    """

    kind: type
    maker: str
    module: str = ""
    names: tuple[str, ...] = ()
    own: str = ""


def _makers(module: ModuleType) -> tuple[str, ...]:
    """The public functions of a module: they are in small letters, its classes are not."""
    return tuple(name for name in module.__all__ if name.islower())


_PARTS = {
    "network": _Part(
        AbstractNetwork,
        "a function of `gflow.networks` makes",
        "networks",
        _makers(networks),
        "`gflow.networks.custom(apply, degree=L)` makes a network of a function of your own.",
    ),
    "dataset": _Part(Dataset, "`gflow.Dataset(x, y)` makes"),
    "loss": _Part(
        AbstractLoss,
        "a function of `gflow.losses` makes",
        "losses",
        _makers(losses),
        "A function of the margin is not enough, since far out its values underflow: a loss of "
        "your own is a subclass of `gflow.losses.AbstractLoss` with `log_value`, `log_slope` and "
        "`inverse`, all in logarithms.",
    ),
    "perturbation": _Part(
        AbstractPerturbation,
        "a function of `gflow.perturbations` makes",
        "perturbations",
        _makers(perturbations),
        "An attack of your own is a subclass of `gflow.perturbations.AbstractPerturbation` with "
        "`order`, `radius` and `__call__`.",
    ),
}

# Of what is given in place of a part so much is shown.
_MOST_LETTERS = 100

# Whose functions lie between a call of `Problem(...)` and its checks.
_BETWEEN = ("gflow", "equinox", "jaxtyping", "beartype")

# Of so many examples every pair is looked at, where the radius is about as large as the data.
_MOST_PAIRED = 2000
# Pixels have 256 values: what stays nonnegative and exceeds this is not scaled to [0, 1].
_LARGEST_SCALED = 64.0
# 0.3, the largest radius in use for images in [0, 1], is this part of 0 .. 255; and a little.
_MINUTE = 1 / 200


def check_parts(**parts: Any) -> None:
    """Raises TypeError where a part is of another kind, in words that say what makes one."""
    for name, value in parts.items():
        check_part("`Problem(...)`", name, value)


def check_part(call: str, kind: str, value: Any, name: str = "") -> None:
    """The same for one part that a call takes, as an argument that is called `name` there."""
    part = _PARTS[kind]
    if not isinstance(value, part.kind):
        raise TypeError(
            f"{call}: `{name or kind}` is {_shown(value)}, expected what {part.maker}."
            f"{_hint(part, value)}"
        )


def _shown(value: Any) -> str:
    """What was given, in a line: of an array its shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of the shape {np.shape(value)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}.."


def _hint(part: _Part, value: Any) -> str:
    if isinstance(value, str) and part.names:
        meant = nearest(value, part.names)
        guess = f" Perhaps `gflow.{part.module}.{meant}(...)` is meant." if meant else ""
        return f"{guess} There are {', '.join(f'`{name}`' for name in part.names)}."
    if not (isinstance(value, type) or inspect.isroutine(value)):
        return ""
    if value.__name__ in part.names or isinstance(value, type):
        return f" Call it first: `{value.__name__}(...)`."  # `losses.logistic`, without brackets
    return f" {part.own}" if part.own else ""


def chosen_rivals(rivals: Any, dataset: Dataset, perturbation: AbstractPerturbation) -> Rivals:
    """The rivals that an attack is made against: "runner_up" where there is no choice.

    Raises:
        ValueError: `rivals` is unknown.
    """
    if not one_of(rivals, RIVALS):
        names = "'worst', 'runner_up' or 'each'"
        raise ValueError(f"`Problem(rivals={rivals!r})`: choose {names}.")
    choice = dataset.num_outputs > 2 and not isinstance(perturbation, Clean)
    return rivals if choice else "runner_up"


def warn_of_radius(perturbation: AbstractPerturbation, inputs: np.ndarray) -> None:
    """Warns of a radius that was probably meant for inputs in other units.

    Either it exceeds the diameter of the data in the attack's norm: then every example can be moved
    onto every other, whatever their labels, and no network withstands it. Or the inputs look like
    pixels of 0 .. 255 and the radius like one for pixels in [0, 1]. A radius that is traced has no
    value yet.

    Shapes: inputs (n, d).
    """
    radius = perturbation.radius
    if isinstance(radius, Tracer) or isinstance(inputs, Tracer) or np.ndim(radius):
        return
    radius, order = float(radius), float(perturbation.order)
    largest = float(np.max(np.abs(inputs)))
    pixels = largest > _LARGEST_SCALED and np.min(inputs) >= 0
    if pixels and 0 < radius <= min(1.0, _MINUTE * largest):
        _warn(
            f"the radius {radius:.3g} is minute beside inputs from {inputs.min():.3g} to "
            f"{largest:.3g}. Usually it is meant for pixels scaled to [0, 1]: divide the inputs by "
            "255, or multiply the radius by it."
        )
    elif radius > 0 and _beyond_diameter(inputs, radius, order):
        _warn(
            f"the radius {radius:.3g} exceeds the diameter of the data in the attack's l_{order:g} "
            "norm: the attack can move every example onto every other, and no network withstands "
            "it. Usually the radius is meant for inputs of another scale, such as pixels of 0 to "
            "255: divide it, or scale the inputs up."
        )


def _warn(message: str) -> None:
    """Warns at the line that calls `Problem(...)`."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"`Problem(...)`: {message}", UserWarning, stacklevel=level)


def _beyond_diameter(inputs: np.ndarray, radius: float, order: float) -> bool:
    """Whether no two examples are as far apart as `radius`, in the l_p norm.

    Examples that are all one have no scale.
    """
    with np.errstate(over="ignore"):  # infinite distances are large ones
        if radius <= np.max(np.ptp(inputs, axis=0)):  # the l_inf norm is the smallest
            return False
        reach = np.max(np.linalg.norm(inputs - inputs[0], order, axis=1))
        # The diameter lies between the distance from the first example and twice that.
        if radius <= reach or reach == 0:
            return False
        if radius > 2 * reach or len(inputs) > _MOST_PAIRED:
            return radius > 2 * reach
        return all(
            radius > np.max(np.linalg.norm(inputs[index + 1 :] - example, order, axis=1), initial=0)
            for index, example in enumerate(inputs)
        )


def is_of_gflow(part: Any) -> bool:
    """Whether a network, a perturbation or a loss is one of gflow: its class is defined here, and
    it holds no function of the user, as `custom` does. It is then homogeneous, scale invariant, or
    of an exponential tail by construction, and held to it by `tests/test_conformance.py`.

    A user's subclass of a class of gflow is none: it is defined elsewhere.
    """
    is_here = type(part).__module__.partition(".")[0] == "gflow"
    return is_here and not any(callable(value) for value in vars(part).values())
