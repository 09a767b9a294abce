"""Data sets: real digits, and synthetic sets whose margin is known.

Everything here is NumPy, so that making data costs no compilation.
"""

import gzip
import math
import numbers
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from gflow._batches import Batches, Sampling, check_batches
from gflow._numerics import check_unmasked, check_untraced
from gflow._signatures import named
from gflow._typing import Inputs, Labels


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

        Raises:
            IndexError: an index that is none of 0 .. n - 1, nor -n .. -1.
        """
        try:
            x, y = self.x[np.asarray(indices, int)], self.y[np.asarray(indices, int)]
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
    shown = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
    raise ValueError(
        "`Dataset(x, y)`: labels must be -1 and +1, or classes 0, 1, .., k-1 each with an example; "
        f"found {shown}. Convert two classes with `np.where(y == positive, 1, -1)`."
    )


@named()
def digits(positive: int = 3, negative: int = 8) -> Dataset:
    """scikit-learn's 8 x 8 handwritten digits, two classes, pixels scaled from 0..16 to [0, 1].

    3 against 8: n = 357, d = 64. Needs the extra `data`.

    Raises:
        TypeError: a digit is no integer.
        ValueError: the digits are equal, or not 0 to 9.
        ImportError: scikit-learn is missing.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (its test set, as shipped with scikit-learn).
    """
    _check_pair(positive, negative, "digits")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "`gflow.datasets.digits` reads scikit-learn's digits: `pip install 'gflow[data]'`."
        ) from None
    bunch: Any = load_digits()
    return _pair(bunch.data / 16.0, bunch.target, positive, negative)


@named()
def mnist(
    path: str | os.PathLike | None = None,
    *,
    positive: int = 3,
    negative: int = 7,
    limit: int | None = None,
    split: str = "train",
) -> Dataset:
    """MNIST's 28 x 28 handwritten digits, two classes, pixels scaled from 0..255 to [0, 1].

    Reads the four IDX files (plain or gzip) from the folder `path`, or from the folder that the
    environment variable `GFLOW_DATA` names (or its subfolder `mnist`). Without either it fetches
    MNIST through scikit-learn's `fetch_openml`, which needs the network and the extra `data`.

    Args:
        path: folder with `train-images-idx3-ubyte[.gz]` and so on.
        positive: the digit labelled +1.
        negative: the digit labelled -1.
        limit: the first so many examples of the two digits; all by default.
        split: "train" or "test" (openml's order: the first 60 000 are the training set).

    Raises:
        TypeError: a digit is no integer.
        ValueError: the digits are equal, or not 0 to 9; `split` or `limit` is out of its range; a
            file is broken.
        FileNotFoundError: the folder does not hold MNIST's files.
        ImportError: there is no folder, and scikit-learn is missing.

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document
    recognition", Proc. IEEE 86, 1998.
    """
    _check_pair(positive, negative, "mnist")
    if split not in ("train", "test"):
        raise ValueError(f"`mnist(split={split!r})`: choose 'train' or 'test'.")
    if limit is not None and limit < 2:
        raise ValueError(f"`mnist(limit={limit})`: at least 2 examples are needed.")
    folder = _mnist_folder(path)
    images, labels = _mnist_openml(split) if folder is None else _mnist_idx(folder, split)
    return _pair(images / 255.0, labels, positive, negative, limit)


def _check_pair(positive: int, negative: int, call: str) -> None:
    for name, digit in (("positive", positive), ("negative", negative)):
        if not isinstance(digit, numbers.Integral) or isinstance(digit, bool):
            raise TypeError(f"`{call}({name}={digit!r})` must be an integer, 0 to 9.")
    if positive == negative or not {positive, negative} <= set(range(10)):
        raise ValueError(
            f"`{call}(positive={positive}, negative={negative})`: choose two different digits, "
            "0 to 9."
        )


def _pair(
    images: np.ndarray, labels: np.ndarray, positive: int, negative: int, limit: int | None = None
) -> Dataset:
    chosen = np.flatnonzero((labels == positive) | (labels == negative))[:limit]
    return Dataset(images[chosen], np.where(labels[chosen] == positive, 1.0, -1.0))


def _mnist_folder(path: str | os.PathLike | None) -> Path | None:
    given = path if path is not None else os.environ.get("GFLOW_DATA")
    if given is None or given == "":
        return None
    for folder in (Path(given), Path(given) / "mnist"):
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    raise FileNotFoundError(
        f"No MNIST files (train-images-idx3-ubyte, plain or .gz) in `{given}`. Point `path` or the "
        "environment variable GFLOW_DATA at the folder that holds them."
    )


def _mnist_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", ndim=3)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", ndim=1)
    if len(images) != len(labels):
        raise ValueError(f"`{folder}`: {len(images)} images but {len(labels)} labels.")
    return images.reshape(len(images), -1), labels


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """An IDX file of unsigned bytes: a header of big-endian sizes, then the values."""
    packed = path.with_name(path.name + ".gz")
    try:
        raw = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"`{path}` could not be read ({error}). Fetch the file again.") from error
    start = 4 + 4 * ndim
    if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) < start:
        raise ValueError(f"`{path}` is not an IDX file of unsigned bytes in {ndim} dimension(s).")
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    values = np.frombuffer(raw, np.uint8, offset=start)
    if values.size != math.prod(shape):
        raise ValueError(f"`{path}` announces {shape} values but holds {values.size}: truncated?")
    return values.reshape(shape)


def _mnist_openml(split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import fetch_openml
    except ImportError:
        raise ImportError(
            "`gflow.datasets.mnist()` without a path fetches MNIST through scikit-learn: "
            "`pip install 'gflow[data]'`, or give `path` or GFLOW_DATA."
        ) from None
    bunch: Any = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
    part = slice(None, 60_000) if split == "train" else slice(60_000, None)
    return bunch.data[part], bunch.target[part].astype(int)


@named()
def gaussian(n: int, d: int, *, gap: float = 0.5, seed: int = 0) -> Dataset:
    """Standard normal points, labelled by a random hyperplane and kept `gap` away from it.

    Each point is moved along the hyperplane's unit normal by `gap` to its own side, so that the set
    is separable with l2 margin at least `gap`.
    """
    _check_sizes(n, d, gap)
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=d)
    normal /= np.linalg.norm(normal)
    x = generator.normal(size=(n, d))
    y = np.where(x @ normal >= 0, 1.0, -1.0)
    x = x + gap * y[:, None] * normal
    if abs(y.sum()) == n:  # all on one side: reflect half of them through the origin
        x[::2], y[::2] = -x[::2], -y[::2]
    return Dataset(x, y)


@named()
def random_labels(n: int, d: int, *, seed: int = 0) -> Dataset:
    """Points on the unit sphere with labels that have nothing to do with them, half of each kind.

    No linear network separates such a set once n is well above 2 d; a wide enough ReLU network
    does.
    """
    _check_sizes(n, d, 0.0)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    return Dataset(x, generator.permutation(y))


def _check_sizes(n: int, d: int, gap: float) -> None:
    if n < 2 or d < 1:
        raise ValueError(f"`n={n}, d={d}`: at least two examples and one input are needed.")
    if not (np.isfinite(gap) and gap >= 0):
        raise ValueError(f"`gap={gap}` must be finite and not negative.")


@named()
def soudry(num_random: int = 12, *, seed: int = 0) -> Dataset:
    """Points in the plane with max-margin direction (1, 1)/sqrt(2) and l2 margin sqrt(2).

    The support vectors are (0.5, 1.5), (1.5, 0.5) with label +1 and their mirror images with label
    -1; `num_random` further points lie beyond twice that margin, half of each label.

    Raises:
        ValueError: `num_random` is odd or negative.

    Source: the example of Soudry, Hoffer, Nacson, Gunasekar & Srebro, "The Implicit Bias of
    Gradient Descent on Separable Data", JMLR 19, 2018, Figure 1.
    """
    if num_random < 0 or num_random % 2:
        raise ValueError(f"`num_random={num_random}` must be even and not negative.")
    generator = np.random.default_rng(seed)
    along = 2 * np.sqrt(2) + generator.uniform(0, 2, size=num_random // 2)
    across = generator.uniform(-2, 2, size=num_random // 2)
    beyond = np.stack([along - across, along + across], axis=1) / np.sqrt(2)
    positive = np.concatenate([[[0.5, 1.5], [1.5, 0.5]], beyond])
    y = np.repeat([1.0, -1.0], len(positive))
    return Dataset(np.concatenate([positive, -positive]), y)
