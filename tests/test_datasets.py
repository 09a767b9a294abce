"""Data sets: what they hold, what they refuse, and the margins that they promise."""

import gzip
import importlib.util
import math
import os
import struct
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gflow import datasets
from gflow.datasets import Dataset

EPS = np.finfo(np.float64).eps
X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
Y = np.array([1, -1, 1])

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed"
)


@pytest.fixture(scope="module", autouse=True)
def own_words():
    """Without the checks of annotations, whose messages come before gflow's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# What a data set holds


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int8, np.uint8, list, jax.numpy.array])
def test_inputs_of_every_kind_become_double(kind):
    x = X.tolist() if kind is list else kind(X) if kind is jax.numpy.array else X.astype(kind)
    dataset = Dataset(x, Y)
    assert isinstance(dataset.x, np.ndarray) and dataset.x.dtype == np.float64
    np.testing.assert_array_equal(dataset.x, X)


@pytest.mark.parametrize("y", [Y, Y.tolist(), Y.astype(float), Y.astype(np.int8)], ids=repr)
def test_binary_labels(y):
    dataset = Dataset(X, y)
    assert dataset.y.dtype == np.float64
    np.testing.assert_array_equal(dataset.y, Y)
    assert dataset.binary and dataset.num_outputs == 1 and len(dataset) == 3


@pytest.mark.parametrize("y", [[0, 2, 1], [0.0, 2.0, 1.0], np.array([0, 2, 1], np.uint8)], ids=repr)
def test_classes(y):
    dataset = Dataset(X, y)
    assert dataset.y.dtype == np.int32
    np.testing.assert_array_equal(dataset.y, [0, 2, 1])
    assert not dataset.binary and dataset.num_outputs == dataset.num_classes == 3


def test_two_classes_from_truth_values():
    assert Dataset(X, [True, False, True]).num_classes == 2


def test_a_data_set_does_not_change_with_the_array_it_was_made_of():
    x, y = X.copy(), Y.astype(float)
    dataset = Dataset(x, y)
    x[:], y[:] = 0, 0
    np.testing.assert_array_equal(dataset.x, X)
    np.testing.assert_array_equal(dataset.y, Y)
    for array in (dataset.x, dataset.y):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7.0


def test_equal_data_sets_are_equal():
    assert Dataset(X, Y) == Dataset(X.tolist(), Y.tolist()) != Dataset(X, -Y)


# What a data set refuses


class Stubborn:
    """What refuses to become an array, as a tensor of another library may."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("detach me first")


REFUSED = {
    "NaN": (ValueError, r"1 entries.*first at x\[1, 0\]", [[1, 2], [math.nan, 4], [5, 6]], Y),
    "infinite": (ValueError, "NaN or infinite", np.where(X == 4, -np.inf, X), Y),
    "too large": (ValueError, "infinite", X.astype(np.longdouble) * np.longdouble(10) ** 400, Y),
    "vector": (ValueError, r"`x` has shape \(3,\)", [1, 2, 3], Y),
    "images": (ValueError, r"`x.reshape\(len\(x\), -1\)`", X[..., None], Y),
    "scalar": (ValueError, r"`x` has shape \(\)", 3.0, Y),
    "no examples": (ValueError, r"n, d >= 1", np.zeros((0, 2)), []),
    "no inputs": (ValueError, r"n, d >= 1", np.zeros((3, 0)), Y),
    "ragged": (TypeError, "`x` is no array of numbers", [[1, 2], [3]], [1, -1]),
    "stubborn": (TypeError, "detach me first", Stubborn(), Y),
    "text": (TypeError, "`x` has dtype", [["1", "2"], ["3", "4"], ["5", "6"]], Y),
    "None": (TypeError, "`x` has dtype object", None, Y),
    "complex": (TypeError, "complex128, expected real numbers", X + 0j, Y),
    "objects": (TypeError, r"`np.asarray\(x, float\)`", X.astype(object), Y),
    "huge integers": (TypeError, "`x` has dtype object", [[10**400, 2]] * 3, Y),
    "dates": (TypeError, "datetime64", np.zeros((3, 2), "M8[D]"), Y),
    "too few labels": (ValueError, r"`y` has shape \(2,\), expected \(3,\)", X, [1, -1]),
    "column": (ValueError, r"`y` has shape \(3, 1\)", X, Y[:, None]),
    "one-hot": (ValueError, "one label for each row", X, np.eye(3)),
    "labels as text": (TypeError, "`y` has dtype", X, ["a", "b", "a"]),
    "ragged labels": (TypeError, "`y` is no array", X, [[1], [1, 2], 3]),
    "one class": (ValueError, "all labels are 1", X, [1, 1, 1]),
    "NaN label": (ValueError, "labels must be", X, [1, -1, math.nan]),
    "gap": (ValueError, "found 0, 2.*each with an example", X, [0, 2, 0]),
    "from one": (ValueError, "found 1, 2, 3", X, [1, 2, 3]),
    "halves": (ValueError, r"found 0, 0.5, 1.*`np.where\(y == positive", X, [0, 0.5, 1]),
    "0 and +-1": (ValueError, "found -1, 0, 1", X, [-1, 0, 1]),
    "many": (ValueError, r"found 0, 2, 4, 6, 8, 10, \.\.\.", np.ones((9, 1)), 2 * np.arange(9)),
}


@pytest.mark.parametrize(("error", "words", "x", "y"), REFUSED.values(), ids=REFUSED)
def test_refusals(error, words, x, y):
    with pytest.raises(error, match=words) as caught:
        Dataset(x, y)
    assert "`Dataset(x, y)`" in str(caught.value)


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2]),
)
anything = st.one_of(numbers, st.text(max_size=3), st.none(), st.complex_numbers(), st.binary())
lists = st.recursive(anything, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
matrices = st.integers(0, 4).flatmap(
    lambda d: st.lists(st.lists(numbers, min_size=d, max_size=d), max_size=5)
)
labels = st.lists(st.sampled_from([-1, 0, 1, 1.0, True, 2, math.nan]), max_size=5)
typed = arrays.arrays(
    st.one_of(arrays.scalar_dtypes(), st.just(np.dtype(object)), arrays.complex_number_dtypes()),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(max_examples=400)
@given(x=st.one_of(lists, matrices, typed), y=st.one_of(labels, lists, typed))
def test_anything_is_valid_or_refused(x, y):
    try:
        dataset = Dataset(x, y)
    except (TypeError, ValueError) as error:
        assert "`Dataset(x, y)`" in str(error)
    else:
        assert_valid(dataset)


@settings(max_examples=50)
@given(data=st.data(), n=st.integers(2, 6), d=st.integers(1, 4))
def test_every_sound_set_is_valid(data, n, d):
    x = data.draw(arrays.arrays(np.float64, (n, d), elements=st.floats(-1e300, 1e300)))
    k = data.draw(st.integers(2, n))
    classes = np.random.default_rng(0).permutation(np.arange(n) % k)
    for y in (classes, np.where(classes == 0, -1, 1)):
        assert_valid(Dataset(x, y))


def assert_valid(dataset):
    n = len(dataset)
    assert dataset.x.dtype == np.float64 and dataset.x.ndim == 2 and np.isfinite(dataset.x).all()
    assert dataset.y.shape == (n,) == dataset.x.shape[:1]
    values = set(dataset.y.tolist())
    assert values == ({-1, 1} if dataset.binary else set(range(dataset.num_classes)))


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
    monkeypatch.setattr(datasets, "_mnist_openml", lambda split: fetched)
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
    # The mean pixel of the whole training set is 0.1307; threes and sevens lie near it.
    assert abs(train.x.mean() - 0.13) < 0.01


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
        ("`n=1, d=3`", lambda: datasets.gaussian(1, 3)),
        ("`n=3, d=0`", lambda: datasets.random_labels(3, 0)),
        ("`gap=-1.0`", lambda: datasets.gaussian(3, 3, gap=-1.0)),
        ("`gap=nan`", lambda: datasets.gaussian(3, 3, gap=math.nan)),
        ("`gap=inf`", lambda: datasets.gaussian(3, 3, gap=math.inf)),
        ("`num_random=3`", lambda: datasets.soudry(3)),
        ("`num_random=-2`", lambda: datasets.soudry(-2)),
        ("`positive=3, negative=3`", lambda: datasets.digits(3, 3)),
    ],
)
def test_refused_sizes(words, call):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)
