"""Examples with labels, as a whole and in batches."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import numpy as np

from gflow._batches import Batches, Sampling, check_batches
from gflow._checks import check_unmasked, check_untraced, is_integer
from gflow._description import storable
from gflow._signatures import named
from gflow._typing import Inputs, Labels


@storable("Dataset")
class Dataset(eqx.Module):
    """Examples with labels.

    Two labels, -1 and +1, make a binary set, for a network with one output; classes 0 .. k-1 make a
    set for a network with k outputs.

    Shapes:
        x: (n, d), float64; images are flattened.
        y: (n,), -1.0 and +1.0; or int32 classes 0 .. k-1.

    Both are copies, and read-only.

    Raises:
        TypeError: `x` or `y` is no array of real numbers.
        ValueError: NaN, infinity or masked entries in `x`, shapes that do not fit, labels of
            another kind, a class without an example.
    """

    x: Inputs
    y: Labels
    num_classes: int = eqx.field(static=True)

    @named()
    def __init__(self, x: Any, y: Any):
        self.x = _checked_inputs(x)
        self.y, self.num_classes = _checked_labels(y, len(self.x))
        for array in (self.x, self.y):
            array.flags.writeable = False

    @property
    def binary(self) -> bool:
        """Whether the labels are -1 and +1 (one output) rather than classes (k outputs)."""
        return self.num_classes == 1

    @property
    def num_outputs(self) -> int:
        """Outputs that a network for this data must have: 1, or the number of classes."""
        return self.num_classes

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Any) -> "Dataset":
        """The examples `indices`, in that order, with the classes of the whole set.

        Some of the classes may be missing among them, as in a batch.

        Shapes: indices (m,), m >= 1.

        Raises:
            TypeError: `indices` is no list of integers; a mask of truth values is none.
            ValueError: it is empty, or has another shape.
            IndexError: an index that is none of 0 .. n - 1, nor -n .. -1.
        """
        chosen = _checked_indices(indices)
        try:
            x, y = self.x[chosen], self.y[chosen]
        except IndexError as error:
            raise IndexError(f"`Dataset.take(indices)`: {error}.") from None
        for array in (x, y):
            np.asarray(array).flags.writeable = False
        return eqx.tree_at(lambda data: (data.x, data.y), self, (x, y))

    @named("Dataset.batches")
    def batches(
        self,
        batch_size: int,
        *,
        num_epochs: int = 1,
        sampling: Sampling = "shuffled",
        seed: int = 0,
    ) -> Iterator["Dataset"]:
        """The mini-batches of some epochs, those of `gflow.descend` with the same arguments.

        Args:
            batch_size: examples of a batch; the last one of a shuffled epoch may have fewer.
            num_epochs: passes through the data, of `ceil(n / batch_size)` batches each.
            sampling: "shuffled" has every example once an epoch, in a new random order;
                "replacement" draws the examples of every batch independently.
            seed: of the order.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of its range.
        """
        check_batches("Dataset.batches", batch_size, sampling, seed, len(self))
        if not is_integer(num_epochs) or num_epochs < 1:
            raise ValueError(
                f"`Dataset.batches(num_epochs={num_epochs!r})` must be an integer of at least 1."
            )
        drawn = Batches(len(self), batch_size, sampling, seed)
        tables = (drawn.draw(1) for _ in range(num_epochs))
        return (self.take(row[row >= 0]) for table in tables for row in table)


def _numbers(values: Any, name: str) -> np.ndarray:
    check_untraced(values, f"`Dataset(x, y)`, `{name}`")
    check_unmasked(values, f"`Dataset(x, y)`, `{name}`")
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, tensors that refuse to become arrays, ..
        raise TypeError(f"`Dataset(x, y)`: `{name}` is no array of numbers: {error}") from error
    if array.dtype.kind in "US" and name == "y":
        raise TypeError(f"`Dataset(x, y)`: `y` holds names, expected numbers. {_NUMBERED}")
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"`Dataset(x, y)`: `{name}` has dtype {array.dtype}, expected real numbers. If that is "
            f"what it holds, convert it with `np.asarray({name}, float)`."
        )
    return array


def _checked_inputs(x: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # what exceeds float64 is refused below as infinite
        array = np.array(_numbers(x, "x"), dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"`Dataset(x, y)`: `x` has shape {array.shape}, expected (n, d) with n, d >= 1. "
            "Flatten images first: `x.reshape(len(x), -1)`."
        )
    bad = ~np.isfinite(array)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"`Dataset(x, y)`: {bad.sum()} entries of `x` are NaN or infinite, the first at "
            f"x[{row}, {column}]. Remove or impute those examples."
        )
    return array


def _checked_indices(indices: Any) -> np.ndarray:
    check_unmasked(indices, "`Dataset.take(indices)`")
    array = np.asarray(indices)
    if array.size == 0:
        raise ValueError(
            "`Dataset.take(indices)`: there are no indices. Data need an example at least."
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"`Dataset.take(indices)`: `indices` has dtype {array.dtype}, expected integers. A "
            "mask of truth values becomes indices by `np.flatnonzero(mask)`."
        )
    if array.ndim != 1:
        raise ValueError(
            f"`Dataset.take(indices)`: `indices` has shape {array.shape}, expected (m,). One "
            "example is taken by `take([index])`."
        )
    return array


_SIGNED = "Convert two classes with `np.where(y == positive, 1, -1)`."
_NUMBERED = "Number the classes from 0 on with `np.unique(y, return_inverse=True)[1]`."


def _checked_labels(y: Any, num_examples: int) -> tuple[np.ndarray, int]:
    labels = _numbers(y, "y")
    if labels.shape != (num_examples,):
        raise ValueError(
            f"`Dataset(x, y)`: `y` has shape {labels.shape}, expected ({num_examples},): one label "
            "for each row of `x`."
        )
    values = np.unique(labels)
    if set(values.tolist()) == {-1, 1}:
        return labels.astype(np.float64), 1
    if len(values) == 1:
        raise ValueError(
            f"`Dataset(x, y)`: all labels are {values[0]}. There is no margin to maximise with one "
            "class only; the data need examples of both."
        )
    if np.array_equal(values, np.arange(len(values))):
        return labels.astype(np.int32), len(values)
    # All digits: 1 + 2e-16 is no label.
    shown = ", ".join(np.format_float_positional(value, trim="-") for value in values[:6])
    shown += ", ..." if len(values) > 6 else ""
    raise ValueError(
        "`Dataset(x, y)`: labels must be -1 and +1, or classes 0, 1, .., k-1 each with an example; "
        f"found {shown}. {_NUMBERED if len(values) > 2 else _SIGNED}"
    )
