"""Losses against `decimal` in 300 digits, from margins of -1e4 to 1e300: a new loss is one more row
of `LOSSES` in `_oracles.py`.
"""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import LOSSES as IN_DIGITS
from _oracles import logsumexp
from hypothesis import given, settings
from hypothesis import strategies as st

from gflow import losses

EPS = np.finfo(np.float64).eps
LOSSES = [getattr(losses, name)() for name in IN_DIGITS]
MARGINS = np.array(
    [
        *(-1e4, -745.2, -300.0, -36.9, -1.0, -0.5413248546129181, -1e-8, 0.0, 1e-300, 1e-8, 0.3),
        *(1.0, 36.999, 37.0, 37.001, 100.0, 299.0, 708.4, 708.5, 746.0, 1e4, 1e16, 1e100, 1e300),
    ]
)

log_value = eqx.filter_jit(lambda loss, margin: loss.log_value(margin))
log_slope = eqx.filter_jit(lambda loss, margin: loss.log_slope(margin))
inverse = eqx.filter_jit(lambda loss, log_loss: loss.inverse(log_loss))
log_loss = eqx.filter_jit(lambda loss, margins: loss.log_loss(margins))
log_weights = eqx.filter_jit(lambda loss, margins: loss.log_weights(margins))
example_margins = eqx.filter_jit(losses.example_margins)
slope_of_log_value = eqx.filter_jit(lambda loss, margin: jax.vmap(jax.grad(loss.log_value))(margin))
slope_of_inverse = eqx.filter_jit(lambda loss, log_loss: jax.vmap(jax.grad(loss.inverse))(log_loss))


def by_name(loss):
    return type(loss).__name__.lower()


def test_every_loss_has_a_row():
    made = {
        name
        for name in losses.__all__
        if inspect.isfunction(getattr(losses, name)) and name != "example_margins"
    }
    assert made == IN_DIGITS.keys(), "A loss has a row in LOSSES of `_oracles.py`, by its function."


every_loss = pytest.mark.parametrize("name", IN_DIGITS)


@every_loss
def test_value_is_that_of_300_digits(name):
    expected = np.array([IN_DIGITS[name].log_value(q) for q in MARGINS])
    found = log_value(getattr(losses, name)(), MARGINS)
    # At log l = 0 only the absolute error can be small.
    np.testing.assert_array_less(abs(found - expected), 4 * EPS * np.maximum(1, abs(expected)))


@every_loss
def test_slope_is_that_of_300_digits(name):
    expected = np.array([IN_DIGITS[name].log_slope(q) for q in MARGINS])
    found = log_slope(getattr(losses, name)(), MARGINS)
    # Right in every digit, also where it is nearly 0; below 1e-308 XLA flushes to 0.
    np.testing.assert_allclose(found, expected, rtol=4 * EPS, atol=np.finfo(float).tiny)


@every_loss
def test_inverse_is_that_of_300_digits(name):
    digits = IN_DIGITS[name]
    values = np.array([digits.log_value(q) for q in MARGINS])
    expected = np.array([digits.inverse(value) for value in values])
    found = inverse(getattr(losses, name)(), values)
    np.testing.assert_array_less(abs(found - expected), 4 * EPS * np.maximum(1, abs(expected)))


def test_exponential_is_exact():
    for function in (log_value, log_slope, inverse):
        np.testing.assert_array_equal(function(losses.exponential(), MARGINS), -MARGINS)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_slope_is_the_derivative_of_the_value(loss):
    # d log l / dq = l'/l, so log(-l') = log l + log(-dlog l/dq).
    found = log_value(loss, MARGINS) + np.log(-slope_of_log_value(loss, MARGINS))
    expected = log_slope(loss, MARGINS)
    np.testing.assert_allclose(found, expected, rtol=8 * EPS, atol=16 * EPS)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_derivative_of_the_inverse(loss):
    values = np.append(np.asarray(log_value(loss, MARGINS)), -37.0)
    slopes = slope_of_log_value(loss, np.asarray(inverse(loss, values)))
    # Rounding of a value moves the margin where its slope is taken, by eps max(1, q) relative.
    np.testing.assert_allclose(slope_of_inverse(loss, values) * slopes, 1, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@settings(max_examples=200)
@given(data=st.data())
def test_inverse_undoes_value(loss, data):
    exponent = data.draw(st.floats(-8, 300))
    margin = 10.0**exponent if exponent > 4 or data.draw(st.booleans()) else -(10.0**exponent)
    margins = np.full((1,), margin)
    value = log_value(loss, margins)
    slope = abs(float(slope_of_log_value(loss, margins)[0]))
    # Rounding of log l, 4 eps max(1, |log l|), moves its inverse by 1 / |d log l / dq| times that;
    # the inverse itself rounds likewise.
    tolerance = 8 * EPS * (max(1.0, abs(float(value[0]))) / slope + max(1.0, abs(margin)))
    assert abs(float(inverse(loss, value)[0]) - margin) <= tolerance


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@settings(max_examples=200)
@given(start=st.floats(-1e4, 1e4), gap=st.floats(1e-6, 1e4))
def test_value_and_slope_fall_as_margins_grow(loss, start, gap):
    pair = np.array([start, start + gap])
    for function in (log_value, log_slope):
        low, high = np.asarray(function(loss, pair))
        # log(-l') of the logistic loss is flat to rounding at margins far below 0.
        assert high < low or (function is log_slope and high <= low <= 0 and start < -10)


def test_logistic_is_below_and_meets_the_exponential():
    values = np.asarray(log_value(losses.logistic(), MARGINS))
    assert np.all(values <= -MARGINS)
    np.testing.assert_array_equal(values[MARGINS > 37], -MARGINS[MARGINS > 37])


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_total_is_a_sum_over_examples(loss):
    margins = np.array([-3.0, 0.2, 5.0, 40.0])
    values = np.asarray(log_value(loss, margins))
    np.testing.assert_allclose(log_loss(loss, margins), logsumexp(values), rtol=4 * EPS)
    # Two equal examples double the loss, at any margin.
    for margin in (-1e4, 0.0, 1e4):
        single = log_loss(loss, np.full((1,), margin))
        double = log_loss(loss, np.full((2,), margin))
        np.testing.assert_allclose(double - single, np.log(2), atol=4 * EPS * max(1, abs(single)))


def test_cross_entropy_of_classes():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(6, 4)) * 5, np.array([0, 1, 2, 3, 0, 1])
    margins = np.array(
        [[logits[i, y] - logits[i, j] for j in range(4) if j != y] for i, y in enumerate(labels)]
    )
    entropy = -np.asarray(jax.nn.log_softmax(logits, axis=1))[np.arange(6), labels]
    found = np.exp(log_loss(losses.logistic(), margins))
    # The reference subtracts logits of size 10: its own error is 10 eps or so.
    np.testing.assert_allclose(found, entropy.sum(), rtol=100 * EPS)


def test_classes_join_to_one_margin():
    rows = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 60.0], [-80.0, -81.0, -80.5], [0.0, 0.0, 0.0]])
    expected = [-logsumexp(-row) for row in rows]
    np.testing.assert_allclose(example_margins(rows), expected, rtol=4 * EPS, atol=4 * EPS)
    binary = jnp.asarray(MARGINS)
    assert losses.example_margins(binary) is binary


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@pytest.mark.parametrize("shape", [(4,), (4, 3)], ids=["binary", "classes"])
def test_weights_are_derivatives(loss, shape):
    margins = np.random.default_rng(1).normal(size=shape) * 3
    weights = np.exp(log_weights(loss, margins))
    step = 1e-3
    for index in np.ndindex(shape):
        moved = np.zeros(shape)
        moved[index] = step
        values = [
            float(np.exp(log_loss(loss, margins + multiple * moved))) for multiple in (1, -1, 2, -2)
        ]
        difference = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)
        # Fourth order: h^4 / 30 times the fifth derivative (the loss itself, for the exponential);
        # rounding of the total over h.
        tolerance = step**4 * 2 * weights[index] + 10 * EPS * values[0] / step
        assert abs(weights[index] + difference) <= tolerance


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
@pytest.mark.parametrize("size", [1e4, 1e16, 1e300])
def test_weights_of_classes_at_extreme_margins(loss, size):
    rows = np.array([[1.0, 2.0, 3.0], [-1.0, 2.0, -1.0]]) * size
    if size > 1e4:  # margins below -1e4 are outside the range, and e^1e16 is no number
        rows = abs(rows)
    found = np.asarray(log_weights(loss, rows))
    assert np.isfinite(found).all()
    # The nearest rivals carry all the weight, shared equally at a tie.
    slope = np.asarray(log_slope(loss, example_margins(rows)))
    nearest = rows == rows.min(axis=1, keepdims=True)
    share = slope - np.log(nearest.sum(axis=1))
    np.testing.assert_allclose(found[nearest], np.repeat(share, nearest.sum(axis=1)), rtol=4 * EPS)
    assert (found[~nearest] < found.max(axis=1).min() - 0.9 * size).all() or size == 1e4


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_nan_stays_nan_and_dtype_is_kept(loss):
    for function in (log_value, log_slope, inverse):
        assert np.isnan(function(loss, np.full((2,), np.nan))).all()
        single = function(loss, MARGINS[:5].astype(np.float32))
        assert single.dtype == np.float32 and np.isfinite(single).all()


def test_rebuilt_losses_are_equal():
    assert losses.logistic() == losses.logistic()
    assert losses.exponential() == losses.exponential()
    assert losses.exponential() != losses.logistic()
