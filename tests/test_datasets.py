"""Real data from files of every state, and synthetic sets with the margins that they promise."""

import gzip
import importlib.util
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from gflow import datasets

EPS = np.finfo(np.float64).eps

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed"
)


pytestmark = pytest.mark.usefixtures("own_words")


# Real data


@needs_sklearn
def test_digits():
    threes = datasets.digits()
    assert threes.x.shape == (357, 64) and threes.binary
    # 183 threes and 174 eights among the 1797 images, with values of 0 to 16.
    assert np.sum(threes.y == 1) == 183 and np.sum(threes.y == -1) == 174
    assert threes.x.min() == 0 and threes.x.max() == 1
    np.testing.assert_array_equal(threes.x * 16, np.round(threes.x * 16))
    eights = datasets.digits(positive=8, negative=3)
    np.testing.assert_array_equal(eights.x, threes.x)
    np.testing.assert_array_equal(eights.y, -threes.y)


IMAGES = np.random.default_rng(0).integers(0, 256, size=(9, 4, 5), dtype=np.uint8)
LABELS = np.array([3, 7, 1, 7, 3, 3, 0, 7, 9], np.uint8)


def idx(array):
    """The IDX format: two zeros, the kind (8: unsigned bytes), dimensions, sizes, values."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write(folder, *, pack=False, split="train", images=None, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "images-idx3-ubyte": idx(IMAGES) if images is None else images,
        "labels-idx1-ubyte": idx(LABELS) if labels is None else labels,
    }
    for name, content in contents.items():
        path = folder / f"{split}-{name}{'.gz' if pack else ''}"
        path.write_bytes(gzip.compress(content) if pack else content)
    return folder


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gz"])
def test_mnist_from_a_folder(tmp_path, pack):
    write(tmp_path, pack=pack)
    write(tmp_path, pack=pack, split="t10k", images=idx(IMAGES[::-1]), labels=idx(LABELS[::-1]))
    dataset = datasets.mnist(tmp_path)
    chosen = [0, 1, 3, 4, 5, 7]
    np.testing.assert_array_equal(dataset.x, IMAGES[chosen].reshape(6, 20) / 255)
    np.testing.assert_array_equal(dataset.y, [1, -1, -1, 1, 1, -1])
    test = datasets.mnist(str(tmp_path), split="test")
    np.testing.assert_array_equal(test.x, dataset.x[::-1])
    few = datasets.mnist(tmp_path, positive=7, negative=3, limit=2)
    np.testing.assert_array_equal(few.y, [-1, 1])


def test_mnist_of_several_classes(tmp_path):
    write(tmp_path)
    three = datasets.mnist(tmp_path, classes=(7, 3, 0))
    chosen = [0, 1, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(three.x, IMAGES[chosen].reshape(7, 20) / 255)
    np.testing.assert_array_equal(three.y, [1, 0, 0, 1, 1, 2, 0])
    assert three.num_outputs == 3 and three.y.dtype == np.int32
    # Two classes by that name are for a network with two outputs.
    assert datasets.mnist(tmp_path, classes=[3, 7]).num_outputs == 2
    with pytest.raises(ValueError, match=r"no example of \[2\] among the 7 images"):
        datasets.mnist(tmp_path, classes=(3, 7, 1, 2))


def test_mnist_to_train_and_to_test_with(tmp_path):
    write(tmp_path)
    write(tmp_path, split="t10k", images=idx(IMAGES[::-1]), labels=idx(LABELS[::-1]))
    options = dict(classes=(3, 7))
    train, test = datasets.mnist_pair(tmp_path, limit=4, test_limit=3, **options)
    assert train == datasets.mnist(tmp_path, limit=4, **options) and len(train) == 4
    assert test == datasets.mnist(tmp_path, limit=3, split="test", **options) and len(test) == 3


@needs_sklearn
def test_ten_digits():
    ten = datasets.digits(classes=range(10))
    assert ten.x.shape == (1797, 64) and ten.num_outputs == 10
    assert np.bincount(ten.y)[3] == 183 and np.bincount(ten.y)[8] == 174


@pytest.mark.parametrize("subfolder", ["", "mnist"])
def test_the_environment_names_the_folder(tmp_path, monkeypatch, subfolder):
    write(tmp_path / subfolder)
    monkeypatch.setenv("GFLOW_DATA", str(tmp_path))
    assert len(datasets.mnist()) == 6
    elsewhere = write(tmp_path / "elsewhere", images=idx(IMAGES[:2]), labels=idx(LABELS[:2]))
    assert len(datasets.mnist(elsewhere)) == 2  # an argument comes first


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_folder_mnist_is_fetched(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("GFLOW_DATA", raising=False)
    else:
        monkeypatch.setenv("GFLOW_DATA", value)
    fetched = (IMAGES.reshape(9, 20), LABELS)
    monkeypatch.setattr(datasets._digits, "_mnist_openml", lambda split: fetched)
    assert len(datasets.mnist()) == 6


ENOUGH = idx(IMAGES)
BROKEN = {
    "truncated": (dict(images=ENOUGH[:-1]), "holds 179: truncated"),
    "too long": (dict(images=ENOUGH + b"\0"), "holds 181"),
    "header only": (dict(images=ENOUGH[:10]), "not an IDX file"),
    "empty": (dict(images=b""), "not an IDX file"),
    "garbage": (dict(images=b"<!DOCTYPE html><html>"), "not an IDX file"),
    "other kind": (dict(images=b"\0\0\x0d" + ENOUGH[3:]), "not an IDX file"),
    "labels as images": (dict(images=idx(LABELS)), r"images-idx3-ubyte` is not an IDX.* 3 dimen"),
    "images as labels": (dict(labels=ENOUGH), r"labels-idx1-ubyte` is not an IDX.* 1 dimen"),
    "fewer labels": (dict(labels=idx(LABELS[:-1])), "9 images but 8 labels"),
    "sizes that wrap": (
        dict(images=b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4)),
        "holds 0: truncated",
    ),
}


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("contents", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named(tmp_path, contents, words, pack):
    write(tmp_path, pack=pack, **contents)
    with pytest.raises(ValueError, match=words) as caught:
        datasets.mnist(tmp_path)
    assert str(tmp_path) in str(caught.value)


def cut(packed):
    return packed[:-12]


def flip(packed):
    middle = len(packed) // 2
    return (
        packed[:middle] + bytes(255 - b for b in packed[middle : middle + 8]) + packed[middle + 8 :]
    )


@pytest.mark.parametrize("damage", [cut, flip, lambda packed: b"", lambda packed: b"not gzip"])
def test_broken_packing_is_named(tmp_path, damage):
    path = write(tmp_path, pack=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"images-idx3-ubyte` (could not be read|is not an IDX)"):
        datasets.mnist(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No MNIST files.*GFLOW_DATA"):
        datasets.mnist(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte` could not be read"):
        datasets.mnist(tmp_path, split="test")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("two different digits", dict(positive=3, negative=3)),
        ("two different digits", dict(positive=10)),
        ("two different digits", dict(negative=-1)),
        ("`mnist(classes=[3])`: choose two or more different digits", dict(classes=[3])),
        ("two or more different digits", dict(classes=(3, 3, 7))),
        ("two or more different digits", dict(classes=range(11))),
        ("`mnist(split='validation')`", dict(split="validation")),
        ("`mnist(limit=1)`", dict(limit=1)),
    ],
)
def test_refused_choices(tmp_path, words, options):
    with pytest.raises(ValueError) as caught:
        datasets.mnist(write(tmp_path), **options)
    assert words in str(caught.value)


@pytest.mark.skipif("GFLOW_DATA" not in os.environ, reason="GFLOW_DATA names no folder with MNIST")
def test_real_mnist():
    folder = Path(os.environ["GFLOW_DATA"])
    train, test = (datasets.mnist(folder, split=split) for split in ("train", "test"))
    # 6131 threes and 6265 sevens to train with, 1010 and 1028 to test with.
    assert [np.sum(part.y == sign) for part in (train, test) for sign in (1, -1)] == [
        6131,
        6265,
        1010,
        1028,
    ]
    assert train.x.shape == (12396, 784)
    assert train.x.min() == 0 and train.x.max() == 1


# Synthetic data


@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 1), (40, 5), (10, 100)])
@pytest.mark.parametrize("gap", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_gaussian_keeps_its_gap(n, d, gap, seed):
    dataset = datasets.gaussian(n, d, gap=gap, seed=seed)
    assert dataset.x.shape == (n, d) and set(dataset.y) == {-1.0, 1.0}
    # The hyperplane is drawn first, from the same generator.
    normal = np.random.default_rng(seed).normal(size=d)
    margins = dataset.y * (dataset.x @ normal) / np.linalg.norm(normal)
    assert margins.min() >= gap - 8 * EPS * np.abs(dataset.x).sum(axis=1).max()
    again = datasets.gaussian(n, d, gap=gap, seed=seed)
    assert dataset == again != datasets.gaussian(n, d, gap=gap, seed=seed + 1)


def test_gaussian_points_on_one_side_are_reflected():
    """In 3 of 4 seeds two points fall on one side or the other; each set has both labels."""
    assert all(set(datasets.gaussian(2, 1, seed=seed).y) == {-1.0, 1.0} for seed in range(20))


@pytest.mark.parametrize("n", [2, 7, 30])
def test_random_labels(n):
    dataset = datasets.random_labels(n, 5, seed=3)
    np.testing.assert_allclose(np.linalg.norm(dataset.x, axis=1), 1, rtol=4 * EPS)
    assert abs(dataset.y.sum()) == n % 2
    assert dataset == datasets.random_labels(n, 5, seed=3) != datasets.random_labels(n, 5)


@pytest.mark.parametrize("num_random", [0, 2, 12, 200])
def test_soudry_has_the_margin_that_it_promises(num_random):
    """The optimum by duality: w lies in the hull of the signed points, and all reach `|w|^2`."""
    dataset = datasets.soudry(num_random)
    signed = dataset.y[:, None] * dataset.x
    assert len(dataset) == num_random + 4 and dataset.y.sum() == 0
    optimum = np.array([1.0, 1.0])
    support = np.array([[0.5, 1.5], [1.5, 0.5]])
    np.testing.assert_array_equal(support.mean(axis=0), optimum)
    assert all((signed == point).all(axis=1).sum() == 2 for point in support)
    margins = signed @ optimum / math.sqrt(2)
    np.testing.assert_allclose(margins.min(), math.sqrt(2), rtol=4 * EPS)
    others = margins[margins > 1.5]
    assert len(others) == num_random
    assert np.all(others >= 2 * math.sqrt(2) * (1 - 4 * EPS))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("`gaussian(n=1, d=3)`", lambda: datasets.gaussian(1, 3)),
        ("`random_labels(n=3, d=0)`", lambda: datasets.random_labels(3, 0)),
        ("`gaussian(gap=-1.0)`", lambda: datasets.gaussian(3, 3, gap=-1.0)),
        ("`gaussian(gap=nan)`", lambda: datasets.gaussian(3, 3, gap=math.nan)),
        ("`gaussian(gap=inf)`", lambda: datasets.gaussian(3, 3, gap=math.inf)),
        ("`soudry(num_random=3)`", lambda: datasets.soudry(3)),
        ("`soudry(num_random=-2)`", lambda: datasets.soudry(-2)),
        ("`digits(positive=3, negative=3)`", lambda: datasets.digits(3, 3)),
    ],
)
def test_refused_sizes(words, call):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)
