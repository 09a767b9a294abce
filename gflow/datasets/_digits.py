"""Handwritten digits: scikit-learn's small ones, and MNIST from files or from openml."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gflow._checks import is_integer, one_of
from gflow._signatures import named
from gflow.datasets._dataset import Dataset


@named()
def digits(
    positive: int = 3, negative: int = 8, *, classes: Sequence[int] | None = None
) -> Dataset:
    """scikit-learn's 8 x 8 handwritten digits, pixels scaled from 0..16 to [0, 1].

    3 against 8: n = 357, d = 64. All ten: n = 1797. Needs the extra `data`.

    Args:
        positive: the digit labelled +1.
        negative: the digit labelled -1.
        classes: as in `mnist`.

    Raises:
        TypeError: a digit is no integer.
        ValueError: digits are equal, or not 0 to 9.
        ImportError: scikit-learn is missing.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (its test set, as shipped with scikit-learn).
    """
    _check_digits(positive, negative, classes, "digits")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "`gflow.datasets.digits` reads scikit-learn's digits: `pip install 'gflow[data]'`."
        ) from None
    bunch: Any = load_digits()
    return _chosen(bunch.data / 16.0, bunch.target, positive, negative, classes)


@named()
def mnist(
    path: str | os.PathLike | None = None,
    *,
    positive: int = 3,
    negative: int = 7,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
    split: str = "train",
) -> Dataset:
    """MNIST's 28 x 28 handwritten digits, pixels scaled from 0..255 to [0, 1].

    Two of them with labels +1 and -1, for a network with one output; or, with `classes`, any number
    of them, for a network with as many outputs.

    Reads the four IDX files (plain or gzip) from the folder `path`, or from the folder that the
    environment variable `GFLOW_DATA` names (or its subfolder `mnist`). Without either it fetches
    MNIST through scikit-learn's `fetch_openml`, which needs the network and the extra `data`.

    Args:
        path: folder with `train-images-idx3-ubyte[.gz]` and so on.
        positive: the digit labelled +1.
        negative: the digit labelled -1.
        classes: instead of these two, the digits labelled 0, 1, .., k-1, in this order;
            `range(10)` for all.
        limit: the first so many examples of the digits; all by default.
        split: "train" or "test" (openml's order: the first 60 000 are the training set).

    Raises:
        TypeError: a digit is no integer.
        ValueError: digits are equal, or not 0 to 9; `split` or `limit` is out of its range; a file
            is broken.
        FileNotFoundError: the folder does not hold MNIST's files.
        ImportError: there is no folder, and scikit-learn is missing.

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document
    recognition", Proc. IEEE 86, 1998.
    """
    _check_digits(positive, negative, classes, "mnist")
    if not one_of(split, ("train", "test")):
        raise ValueError(
            f"`mnist(split={split!r})`: choose 'train' or 'test', or call `mnist_pair` for both."
        )
    if limit is not None and (not is_integer(limit) or limit < 2):
        raise ValueError(
            f"`mnist(limit={limit!r})` must be None or an integer: at least 2 examples are needed."
        )
    folder = _mnist_folder(path)
    images, labels = _mnist_openml(split) if folder is None else _mnist_idx(folder, split)
    return _chosen(images / 255.0, labels, positive, negative, classes, limit)


@named()
def mnist_pair(
    path: str | os.PathLike | None = None,
    *,
    positive: int = 3,
    negative: int = 7,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
) -> tuple[Dataset, Dataset]:
    """MNIST to train with and to test with: `mnist` with split "train" and with split "test".

    Args:
        path, positive, negative, classes: as in `mnist`.
        limit: the first so many examples of the training set; all by default.
        test_limit: likewise of the test set.
    """
    options: dict[str, Any] = {"positive": positive, "negative": negative, "classes": classes}
    train = mnist(path, limit=limit, split="train", **options)
    return train, mnist(path, limit=test_limit, split="test", **options)


def _check_digits(positive: int, negative: int, classes: Sequence[int] | None, call: str) -> None:
    if classes is None:
        named_digits = {"positive": positive, "negative": negative}
        shown = f"{call}(positive={positive}, negative={negative})"
    else:
        if not isinstance(classes, (Sequence, np.ndarray)) or isinstance(classes, str):
            raise TypeError(f"`{call}(classes={classes!r})`: None, or a sequence of digits.")
        named_digits = {f"classes[{place}]": digit for place, digit in enumerate(classes)}
        shown = f"{call}(classes={list(classes)})"
    for name, digit in named_digits.items():
        if not is_integer(digit):
            raise TypeError(f"`{call}({name}={digit!r})` must be an integer, 0 to 9.")
    digits = list(named_digits.values())
    if len(digits) < 2 or len(set(digits)) < len(digits) or not set(digits) <= set(range(10)):
        words = "two" if classes is None else "two or more"
        raise ValueError(f"`{shown}`: choose {words} different digits, 0 to 9.")


def _chosen(
    images: np.ndarray,
    labels: np.ndarray,
    positive: int,
    negative: int,
    classes: Sequence[int] | None,
    limit: int | None = None,
) -> Dataset:
    wanted = [positive, negative] if classes is None else list(classes)
    chosen = np.flatnonzero(np.isin(labels, wanted))[:limit]
    missing = [digit for digit in wanted if digit not in labels[chosen]]
    if missing:
        raise ValueError(
            f"Of the digits {wanted} there is no example of {missing} among the {len(chosen)} "
            "images. Every class needs an example: raise `limit`, or choose other digits."
        )
    y = np.zeros(len(chosen), np.int32)
    for label, digit in enumerate(wanted):
        y[labels[chosen] == digit] = label
    return Dataset(images[chosen], np.where(y == 0, 1.0, -1.0) if classes is None else y)


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
