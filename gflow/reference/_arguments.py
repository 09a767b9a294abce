"""The arguments of the public verbs, checked: data, radius and order."""

import math
from typing import Any

import numpy as np

from gflow._checks import check_unmasked, check_untraced, whole_or_real
from gflow.reference._norms import Array

# The largest input lies between this and its inverse, so that squares stay in the range of float64.
_SMALLEST_INPUT = 1e-120


def checked_examples(dataset: Any) -> tuple[Array, Array, int]:
    """Inputs, labels and the number of classes (1 for the labels -1 and +1), checked."""
    if not (hasattr(dataset, "x") and hasattr(dataset, "y")):
        raise TypeError(
            f"expected a data set with `x` and `y`, got {type(dataset).__name__}. "
            "`gflow.Dataset(x, y)` makes one from arrays."
        )
    for name in ("x", "y"):
        check_untraced(getattr(dataset, name), f"`max_margin(dataset)`, `{name}`")
        check_unmasked(getattr(dataset, name), f"`max_margin(dataset)`, `{name}`")
    x, y = np.asarray(dataset.x, dtype=np.float64), np.asarray(dataset.y, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape or y.shape != x.shape[:1]:
        raise ValueError(
            f"`x` has shape {x.shape} and `y` {y.shape}; expected (n, d) and (n,), n, d >= 1."
        )
    # A part of a data set may lack some of its classes, which are rivals all the same.
    num_classes = getattr(dataset, "num_classes", None)
    num_classes = _num_classes(y) if num_classes is None else _checked_classes(y, int(num_classes))
    if not np.isfinite(x).all():
        raise ValueError("`x` holds NaN or infinity. Remove or impute those examples.")
    largest = np.abs(x).max()
    if largest and not _SMALLEST_INPUT < largest < 1 / _SMALLEST_INPUT:
        raise ValueError(
            f"the largest entry of `x` is {largest:.1e} in size: squares of such numbers leave the "
            "range of float64. Rescale `x` (and `radius`); the direction does not change."
        )
    return x, y.astype(int), num_classes


def _checked_classes(y: Array, num_classes: int) -> int:
    """The number of classes of a `gflow.Dataset`, whose labels are among them."""
    known = np.arange(num_classes) if num_classes > 1 else (-1.0, 1.0)
    if not np.isin(y, known).all():
        what = f"classes 0 .. {num_classes - 1}" if num_classes > 1 else "labels -1 and +1"
        raise ValueError(f"`y` must hold the {what} of the data set alone.")
    return num_classes


def _num_classes(y: Array) -> int:
    """1 for labels -1 and +1, k for labels 0 .. k-1."""
    if np.isin(y, (-1.0, 1.0)).all():
        return 1
    classes = np.unique(y)
    if len(classes) < 2 or not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(
            "`y` must hold the labels -1 and +1, or the classes 0 .. k-1 with an example of each."
        )
    return len(classes)


def checked_radius(radius: Any) -> float:
    """The radius of an attack as a number, finite and not negative."""
    value = _number(radius, "radius")
    if not 0 <= value < math.inf:
        raise ValueError(f"`radius={radius!r}` must be finite and not negative.")
    return value


def checked_order(order: Any) -> float:
    """The order p >= 1 of an attack's ball as a number."""
    value = _number(order, "order")
    if not value >= 1:
        raise ValueError(
            f"`order={order!r}` must lie in [1, inf]: below 1 there is no norm. It is the order of "
            "the attack's ball; 2 is FGM, `math.inf` is FGSM."
        )
    return value


def _number(value: Any, name: str) -> float:
    check_untraced(value, f"`max_margin({name}=...)`")
    check_unmasked(value, f"`max_margin({name}=...)`")
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"`{name}={value!r}` is not a number.")
    try:
        return whole_or_real(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}={value!r}` is not a number.") from None
