"""The data set: what it holds and what it refuses, with every kind of input."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gflow.datasets import Dataset

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
Y = np.array([1, -1, 1])

pytestmark = pytest.mark.usefixtures("own_words")


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
    "labels as text": (TypeError, r"`y` holds names.*`np.unique\(y", X, ["a", "b", "a"]),
    "ragged labels": (TypeError, "`y` is no array", X, [[1], [1, 2], 3]),
    "one class": (ValueError, "all labels are 1", X, [1, 1, 1]),
    "NaN label": (ValueError, "labels must be", X, [1, -1, math.nan]),
    "gap": (ValueError, r"found 0, 2\..*`np.where\(y == positive", X, [0, 2, 0]),
    "from one": (ValueError, "found 1, 2, 3", X, [1, 2, 3]),
    "halves": (ValueError, r"found 0, 0.5, 1.*`np.unique\(y", X, [0, 0.5, 1]),
    "0 and +-1": (ValueError, "found -1, 0, 1", X, [-1, 0, 1]),
    "rounded": (ValueError, "found -1, 1.0000000000000002", X, [-1, 1 + 2**-52, -1]),
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


@settings(max_examples=250)
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
