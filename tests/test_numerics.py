"""Norms, unit vectors and smooth kinks: definitions, extremes, and derivatives at 0."""

import fractions
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import central_difference
from _oracles import lp_norm as lp_norm_by_definition
from _oracles import steepest as steepest_by_definition
from hypothesis import given, settings
from hypothesis import strategies as st

from gflow import _checks as checks
from gflow import _numerics as numerics
from gflow import _rounded as rounded

EPS = np.finfo(np.float64).eps
TINY = np.finfo(np.float64).tiny
ORDERS = [1.0, 1.001, 1.3, 2.0, 3.0, 1e6, math.inf]
VECTOR = np.array([0.3, -1.2, 0.0, 2.0, -0.7])
ZERO = np.zeros(5)

# A static order is part of the program; everything else is data.
norm = jax.jit(numerics.norm)
lp_norm = jax.jit(numerics.lp_norm, static_argnums=1)
steepest = jax.jit(numerics.steepest, static_argnums=1)
steepest_jacobian = jax.jit(jax.jacfwd(numerics.steepest), static_argnums=1)
smoothed_sign = jax.jit(numerics.smoothed_sign)
smoothed_sign_jacobian = jax.jit(jax.jacrev(numerics.smoothed_sign))
smoothed_relu = jax.jit(rounded.smoothed_relu)

vectors = st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5).map(np.array)
law = settings(max_examples=60)


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-200, 1.0, 1e200, 1e307])
def test_norm_at_any_size(size):
    np.testing.assert_allclose(norm(size * VECTOR), size * math.hypot(*VECTOR), rtol=4 * EPS)
    for order in (1.0, 3.0, math.inf):
        expected = size * lp_norm_by_definition(VECTOR, order)
        np.testing.assert_allclose(lp_norm(size * VECTOR, order), expected, rtol=8 * EPS)


def test_subnormal_vectors_count_as_zero():
    subnormal = np.array([5e-324, -1e-310, 1e-320, 0.0, 0.0])
    assert norm(subnormal) == 0
    for order in ORDERS:
        assert lp_norm(subnormal, order) == 0
        np.testing.assert_array_equal(steepest(subnormal, order), ZERO)
    np.testing.assert_array_equal(smoothed_sign(subnormal, 0.1), ZERO)
    assert np.isfinite(smoothed_relu(subnormal, abs(subnormal))).all()


def test_nan_is_never_lost():
    poisoned = np.where(VECTOR == 0, np.nan, VECTOR)
    assert np.isnan(norm(poisoned))
    assert np.isnan(smoothed_sign(poisoned, 0.1)).any()
    assert np.isnan(smoothed_relu(poisoned, np.ones(5))).any()
    unit, length = numerics.unit((jnp.asarray(poisoned),))
    assert np.isnan(length) and np.isnan(unit[0]).all()
    for order in ORDERS:
        assert np.isnan(lp_norm(poisoned, order))
        assert np.isnan(steepest(poisoned, order)).any()


def test_derivatives_of_the_norm():
    gradient, hessian = jax.jit(jax.grad(numerics.norm)), jax.jit(jax.hessian(numerics.norm))
    length = math.hypot(*VECTOR)
    unit = VECTOR / length
    np.testing.assert_allclose(gradient(VECTOR), unit, rtol=4 * EPS)
    expected = (np.eye(5) - np.outer(unit, unit)) / length
    np.testing.assert_allclose(hessian(VECTOR), expected, atol=8 * EPS)
    np.testing.assert_array_equal(gradient(ZERO), ZERO)
    np.testing.assert_array_equal(hessian(ZERO), np.zeros((5, 5)))


def test_trees():
    tree = {"a": np.array([[3.0, 0.0]]), "b": (np.array(4.0), np.array([12.0]))}

    @jax.jit
    def observe(tree):
        unit, length = numerics.unit(tree)
        vector = jax.tree.map(jnp.ones_like, tree)
        sideways = numerics.tangent(unit, vector)
        return {
            "length": length,
            "square": numerics.tree_dot(tree, tree),
            "unit_length": numerics.tree_norm(unit),
            "twice": numerics.tree_scale(2.0, tree),
            "slope": numerics.tree_dot(unit, sideways),
            "removed": numerics.tree_dot(unit, vector),
            "sideways": numerics.tree_dot(sideways, sideways),
        }

    seen = observe(tree)
    np.testing.assert_allclose(seen["length"], 13.0, rtol=2 * EPS)
    np.testing.assert_allclose(seen["square"], 169.0, rtol=2 * EPS)
    np.testing.assert_allclose(seen["unit_length"], 1.0, rtol=4 * EPS)
    np.testing.assert_array_equal(seen["twice"]["a"], 2 * tree["a"])
    assert abs(seen["slope"]) <= 4 * EPS
    np.testing.assert_allclose(seen["sideways"], 4 - seen["removed"] ** 2, rtol=16 * EPS)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(seen))
    singles = observe(jax.tree.map(np.float32, tree))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(singles))
    nothing = observe(jax.tree.map(np.zeros_like, tree))
    assert nothing["length"] == 0 and nothing["unit_length"] == 0


@pytest.mark.parametrize(
    ("order", "dual"), [(1, math.inf), (2, 2), (3, 1.5), (1.5, 3), (math.inf, 1), (1.001, 1001)]
)
def test_dual_order(order, dual):
    assert numerics.dual_order(order) == pytest.approx(dual, rel=1e-12)
    assert numerics.dual_order(numerics.dual_order(order)) == pytest.approx(order, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@law
@given(vector=vectors)
def test_steepest_is_the_dual_vector(order, vector):
    found = np.asarray(steepest(vector, order))
    largest = np.max(abs(vector))
    # The sign of the smallest normal number is not lost; its square would be.
    if largest < TINY or (largest == TINY and order != math.inf):
        np.testing.assert_array_equal(found, ZERO)
        return
    # Powers amplify rounding of their base: q - 1 = 1/(p - 1) in the vector, p in its own norm.
    power = 1.0 if order in (1.0, math.inf) else max(order, order / (order - 1))
    tolerance = 8 * EPS * power
    np.testing.assert_allclose(lp_norm(found, order), 1, rtol=tolerance)
    product = lp_norm(vector, numerics.dual_order(order))
    np.testing.assert_allclose(vector @ found, product, rtol=tolerance)


@pytest.mark.parametrize("order", [1.0, 1.3, 2.0, 3.0, math.inf])
def test_steepest_against_the_definition(order):
    np.testing.assert_allclose(
        steepest(VECTOR, order), steepest_by_definition(VECTOR, order), rtol=1e-14
    )


@pytest.mark.parametrize("order", ORDERS)
def test_steepest_does_not_see_the_size(order):
    expected = steepest(VECTOR, order)
    for factor in (1e-300, 1e-200, 1e-6, 1e6, 1e200, 1e307):
        # The ratios of entries round once; the power q - 1 amplifies that.
        tolerance = 4 * EPS * max(1, 1 / (order - 1) if order > 1 else 1)
        np.testing.assert_allclose(steepest(factor * VECTOR, order), expected, rtol=tolerance)


def test_steepest_for_order_one_takes_the_first_of_the_largest():
    ties = np.array([0.0, -2.0, 2.0, -2.0, 1.0])
    np.testing.assert_array_equal(steepest(ties, 1.0), [0, -1, 0, 0, 0])
    # A difference in the last bit is no tie, though dividing by the largest entry makes it one.
    near = np.array([np.nextafter(0.7, 0), 0.7, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(steepest(near, 1.0), [0, 1, 0, 0, 0])


def test_neighbouring_orders_agree():
    # Continuity in p towards 1 (where there is one largest entry) and towards infinity.
    np.testing.assert_allclose(steepest(VECTOR, 1.001), steepest(VECTOR, 1.0), atol=1e-12)
    np.testing.assert_allclose(steepest(VECTOR, 1e6), steepest(VECTOR, math.inf), atol=1e-5)
    np.testing.assert_allclose(steepest(VECTOR, 1e300), steepest(VECTOR, math.inf), atol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_derivative_of_steepest(order):
    jacobian = np.asarray(steepest_jacobian(VECTOR, order))
    for index in range(5):
        if VECTOR[index] == 0 and order > 2:
            np.testing.assert_array_equal(jacobian[:, index], 0)  # infinite, taken as 0
            continue
        direction = np.eye(5)[index]
        difference = central_difference(lambda v: steepest(v, order), VECTOR, direction, 1e-4)
        # Truncation h^4 f'''''/30 and rounding eps/h, with room for derivatives of size (q - 1)^5.
        np.testing.assert_allclose(jacobian[:, index], difference, atol=1e-9)
    # No change along the vector itself: steepest is 0-homogeneous.
    np.testing.assert_allclose(jacobian @ VECTOR, 0, atol=1e-13)
    np.testing.assert_array_equal(steepest_jacobian(ZERO, order), np.zeros((5, 5)))


def test_smoothed_sign():
    for smoothing in (1e-6, 1e-2, 1.0):
        found = np.asarray(smoothed_sign(VECTOR, smoothing))
        width = smoothing * np.sqrt(np.mean(VECTOR**2))
        np.testing.assert_allclose(found, VECTOR / np.sqrt(VECTOR**2 + width**2), rtol=8 * EPS)
        for factor in (1e-300, 1e-6, 1e6, 1e300):
            scaled = smoothed_sign(factor * VECTOR, smoothing)
            np.testing.assert_allclose(scaled, found, rtol=8 * EPS)
        jacobian = np.asarray(smoothed_sign_jacobian(VECTOR, smoothing))
        np.testing.assert_allclose(jacobian @ VECTOR, 0, atol=1e-13 / smoothing)
    direction = np.arange(5.0)
    difference = central_difference(lambda v: smoothed_sign(v, 1.0), VECTOR, direction, 1e-3)
    np.testing.assert_allclose(jacobian @ direction, difference, atol=1e-10)
    np.testing.assert_array_equal(smoothed_sign(ZERO, 0.1), ZERO)
    np.testing.assert_array_equal(smoothed_sign_jacobian(ZERO, 0.1), np.zeros((5, 5)))


def test_smoothed_sign_with_traced_zero_is_the_sign():
    np.testing.assert_allclose(smoothed_sign(VECTOR, 0.0), np.sign(VECTOR), rtol=2 * EPS)
    # Its derivative, exactly 0, is left over from a cancellation of 1/|g|.
    np.testing.assert_allclose(smoothed_sign_jacobian(VECTOR, 0.0), 0, atol=8 * EPS / 0.3)


@law
@given(
    value=st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=3, max_size=3),
    width=st.floats(1e-6, 1e3),
    log_size=st.sampled_from([-290.0, -160.0, 0.0, 150.0, 290.0]),
)
def test_smoothed_relu(value, width, log_size):
    # Two identities determine it: r(a) - r(-a) = a and r(a) r(-a) = (w/2)^2.
    value, width = np.array(value), np.full(3, width)
    up = np.asarray(smoothed_relu(value, width))
    down = np.asarray(smoothed_relu(-value, width))
    assert (up > 0).all() and (down > 0).all()
    np.testing.assert_allclose(up - down, value, atol=4 * EPS * max(abs(value).max(), width[0]))
    np.testing.assert_allclose(up * down, (width / 2) ** 2, rtol=16 * EPS)
    # And it is 1-homogeneous, without overflow or underflow of a square.
    size = 10.0**log_size
    np.testing.assert_allclose(
        smoothed_relu(size * value, size * width), size * up, rtol=16 * EPS, atol=TINY
    )


def test_smoothed_relu_without_width():
    value = np.array([-2.0, -1e-170, 0.0, 1e-170, 3.0])
    np.testing.assert_array_equal(smoothed_relu(value, ZERO), np.maximum(value, 0))
    slope = jax.jit(jax.grad(lambda v, w: jnp.sum(rounded.smoothed_relu(v, w)), argnums=(0, 1)))
    np.testing.assert_allclose(slope(value, ZERO)[0], [0, 0, 0.5, 1, 1], atol=EPS)
    assert np.isfinite(slope(value, ZERO)[1]).all()


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.asarray(0.5), jnp.float32(0.5)],
    ids=lambda value: type(value).__name__,
)
def test_scalar_keeps_numbers_as_numpy(value):
    number = checks.scalar(value, "radius")
    assert isinstance(number, np.ndarray) and number.dtype == np.float64 and number.shape == ()
    assert number == 0.5
    assert checks.scalar(2, "radius") == 2.0


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((value, TypeError) for value in ("0.3", None, True, 1j, [0.1], fractions.Fraction(1, 2))),
        *((value, TypeError) for value in (np.ones(3), jnp.ones(3))),
        *((value, ValueError) for value in (math.nan, math.inf, -1e-9, jnp.asarray(-1.0))),
    ],
    ids=repr,
)
def test_scalar_refuses(value, error):
    with pytest.raises(error, match="`radius="):
        checks.scalar(value, "radius")


def test_scalar_lets_tracers_through():
    doubled = eqx.filter_jit(jax.vmap(lambda radius: 2.0 * checks.scalar(radius, "radius")))
    np.testing.assert_array_equal(doubled(np.array([1.0, 2.0])), [2.0, 4.0])


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), np.array(0.0), jnp.asarray(0.0)], ids=repr)
def test_zero_smoothing_is_none(zero):
    assert checks.smoothing_leaf(zero) is None
    assert checks.smoothing_leaf(zero + 0.5) == 0.5


def test_single_precision_is_kept():
    single = VECTOR.astype(np.float32)
    assert norm(single).dtype == np.float32
    assert smoothed_sign(single, np.float32(0.1)).dtype == np.float32
    assert smoothed_relu(single, abs(single)).dtype == np.float32
    for order in (1.3, math.inf):
        assert lp_norm(single, order).dtype == steepest(single, order).dtype == np.float32


def test_norms_of_rows_may_be_those_of_a_constant_in_a_compiled_map():
    """As of `limit.direction`, which is NumPy's, in a function that a user compiles."""
    rows = np.array([[3.0, 4.0], [0.0, 0.0]])

    def scaled(factor):
        return factor * numerics.row_norms(rows)

    found = jax.jit(jax.vmap(jax.jacobian(scaled)))(jnp.ones(2))
    np.testing.assert_allclose(found, [[5.0, 0.0]] * 2, rtol=1e-15)
