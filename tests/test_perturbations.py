"""Perturbations against NumPy and foolbox, their invariances, and their edges."""

import math
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import lp_norm, mlp_forward, mlp_input_gradient, pgd, steepest

from gflow import perturbations
from gflow.perturbations import clean, fgm, fgsm

NUM_EXAMPLES, WIDTHS, RADIUS = 6, (4, 5, 5, 1), 0.3
_generator = np.random.default_rng(3)
WEIGHTS = tuple(
    _generator.normal(size=shape) for shape in zip(WIDTHS[1:], WIDTHS[:-1], strict=True)
)
X = _generator.uniform(0.05, 0.95, size=(NUM_EXAMPLES, WIDTHS[0]))
Y = np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])

PGD = dict(step_size=0.12, num_steps=5)
STEPS = {
    "fgm_1": fgm(RADIUS, order=1),
    "fgm_1.3": fgm(RADIUS, order=1.3),
    "fgm_2": fgm(RADIUS),
    "fgm_3": fgm(RADIUS, order=3),
    "fgsm": fgsm(RADIUS),
}
ITERATIONS = {
    "pgd_1": perturbations.pgd(RADIUS, order=1, **PGD),
    "pgd_2": perturbations.pgd(RADIUS, order=2, **PGD),
    "pgd_inf": perturbations.pgd(RADIUS, **PGD),
    "pgd_1_random": perturbations.pgd(RADIUS, order=1, random_start=0, box=(0.0, 1.0), **PGD),
    "pgd_2_random": perturbations.pgd(RADIUS, order=2, random_start=0, box=(0.0, 1.0), **PGD),
    "pgd_inf_random": perturbations.pgd(RADIUS, random_start=0, box=(0.0, 1.0), **PGD),
}
ALL = {"clean": clean(), **STEPS, "fgsm_smoothed": fgsm(RADIUS, smoothing=0.1), **ITERATIONS}


def network(weights, x):
    """Three layers, ReLU, degree 3."""
    for weight in weights[:-1]:
        x = jax.nn.relu(weight @ x)
    return (weights[-1] @ x)[0]


@eqx.filter_jit
def attack(perturbation, weights, x):
    """The perturbations of all examples. Shapes: (n, d)."""
    starts = perturbation.starts(*x.shape)
    return jax.vmap(
        lambda point, y, start: perturbation(lambda z: y * network(weights, z), point, start),
        (0, 0, None if starts is None else 0),
    )(x, jnp.asarray(Y), starts)


def margin_gradient(y):
    return lambda point: mlp_input_gradient(WEIGHTS, point, [y])


def by_numpy(perturbation, index):
    """The perturbation of one example, from the definitions."""
    gradient = margin_gradient(Y[index])
    if not isinstance(perturbation, perturbations.ProjectedGradient):
        return -RADIUS * steepest(gradient(X[index]), perturbation.order)
    starts = perturbation.starts(*X.shape)
    return pgd(
        gradient,
        X[index],
        radius=RADIUS,
        order=perturbation.order,
        start=None if starts is None else starts[index],
        box=perturbation.box,
        **PGD,
    )


@pytest.mark.parametrize("name", [*STEPS, *ITERATIONS])
def test_against_numpy(name):
    found = attack(ALL[name], WEIGHTS, X)
    expected = [by_numpy(ALL[name], index) for index in range(NUM_EXAMPLES)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_smoothed_fgsm_against_numpy():
    found = attack(ALL["fgsm_smoothed"], WEIGHTS, X)
    gradients = np.array([margin_gradient(Y[i])(X[i]) for i in range(NUM_EXAMPLES)])
    width = 0.1 * np.sqrt(np.mean(gradients**2, axis=1, keepdims=True))
    expected = -RADIUS * gradients / np.sqrt(gradients**2 + width**2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        # foolbox 3.3.4 imports scipy.ndimage.filters, a deprecated name.
        warnings.filterwarnings("ignore", "Please import .gaussian_filter.", DeprecationWarning)
        return pytest.importorskip("foolbox")


STEPWISE = {"abs_stepsize": PGD["step_size"], "steps": PGD["num_steps"]}
FOOLBOX = {
    "fgm_2": ("L2FastGradientAttack", {}, (-100, 100)),
    "fgsm": ("LinfFastGradientAttack", {}, (-100, 100)),
    "pgd_2": ("L2ProjectedGradientDescentAttack", STEPWISE, (-100, 100)),
    "pgd_inf": ("LinfProjectedGradientDescentAttack", STEPWISE, (-100, 100)),
    "pgd_2_box": ("L2ProjectedGradientDescentAttack", STEPWISE, (0, 1)),
    "pgd_inf_box": ("LinfProjectedGradientDescentAttack", STEPWISE, (0, 1)),
}


@pytest.mark.parametrize("name", FOOLBOX)
def test_against_foolbox(name, foolbox):
    kind, options, bounds = FOOLBOX[name]
    own = ALL[name.removesuffix("_box")]
    if name.endswith("_box"):
        own = perturbations.pgd(RADIUS, order=own.order, box=(0.0, 1.0), **PGD)

    def logits(x):
        # The cross-entropy of (-f/2, f/2) is the logistic loss of y f, whose gradient points the
        # same way as that of the margin while neither underflows.
        outputs = jax.vmap(network, (None, 0))(WEIGHTS, x)
        return jnp.stack([-outputs / 2, outputs / 2], axis=1)

    theirs = getattr(foolbox.attacks, kind)(random_start=False, **options)
    with jax.numpy_dtype_promotion("standard"):  # foolbox mixes dtypes
        model = foolbox.models.JAXModel(logits, bounds=bounds)
        adversarial = theirs.run(model, jnp.asarray(X), jnp.asarray(Y > 0, int), epsilon=RADIUS)
    assert adversarial.dtype == np.float64
    found = np.asarray(attack(own, WEIGHTS, X))
    np.testing.assert_allclose(X + found, adversarial, rtol=0, atol=1e-12)
    assert abs(found).max() > 0.1


@pytest.mark.parametrize("name", ALL)
def test_scale_invariance(name):
    expected = np.asarray(attack(ALL[name], WEIGHTS, X))
    for factor in (1e-6, 1e-3, 0.7, 3.0, 1e6):
        scaled = tuple(factor * weight for weight in WEIGHTS)
        found = attack(ALL[name], scaled, X)
        # Rounding only: three layers and at most five steps.
        np.testing.assert_allclose(found, expected, rtol=0, atol=200 * 2.2e-16 * RADIUS)


def test_margins_where_the_loss_has_no_gradient():
    # Margins of 1e9 and more: exp(-margin), hence the gradient of any loss, is 0.
    large = tuple(1e4 * weight for weight in WEIGHTS)
    assert min(abs(mlp_forward(large, x)[0][0]) for x in X) > 1e9
    found = np.asarray(attack(ALL["fgm_2"], large, X))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), RADIUS, rtol=1e-14)


@pytest.mark.parametrize("name", [*STEPS, *ITERATIONS])
def test_length(name):
    order = ALL[name].order
    lengths = np.array([lp_norm(delta, order) for delta in attack(ALL[name], WEIGHTS, X)])
    if name in STEPS:
        np.testing.assert_allclose(lengths, RADIUS, rtol=1e-14)
    else:
        assert (lengths <= RADIUS * (1 + 4e-15)).all() and (lengths > 0.5 * RADIUS).all()


@pytest.mark.parametrize("name", [name for name in ITERATIONS if name.endswith("random")])
def test_box_is_kept(name):
    # Example 0 sits in a corner of the box.
    x = np.concatenate([[[0.0, 1.0, 0.0, 1.0]], X[1:]])
    delta = np.asarray(attack(ALL[name], WEIGHTS, x))
    assert (x + delta >= -1e-16).all() and (x + delta <= 1 + 2e-16).all()
    lengths = [lp_norm(row, ALL[name].order) for row in delta]
    assert max(lengths) <= RADIUS * (1 + 4e-15)
    assert abs(delta).max() > 0.05
    free = perturbations.pgd(RADIUS, order=ALL[name].order, random_start=0, **PGD)
    outside = x + np.asarray(attack(free, WEIGHTS, x))
    assert (outside < 0).any() or (outside > 1).any()  # the box did something


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow), math.inf])
def test_a_box_has_second_derivatives(order):
    """By the parameters, through the attack, as stiff steps of the total gradient need them."""
    attack = perturbations.pgd(RADIUS, order=order, num_steps=3, step_size=0.2, box=(0.0, 1.0))
    x = jnp.asarray(np.concatenate([[[0.0, 1.0, 0.0, 1.0]], X[1:]]))
    weight, turn = (np.random.default_rng(5).normal(size=(2, 4)) for _ in range(2))

    def margins(weight):
        def margin(z):
            return jnp.sum(jnp.sin(weight @ z))

        return sum(margin(point + attack(margin, point, None)) for point in x)

    slope = jax.jit(jax.grad(margins))
    _, found = jax.jit(lambda at, by: jax.jvp(jax.grad(margins), (at,), (by,)))(weight, turn)
    # Central differences with an error of about 1e-10 / step and step^2.
    step = 1e-5
    expected = (slope(weight + step * turn) - slope(weight - step * turn)) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    inside = np.array([attack(lambda z: jnp.sum(jnp.sin(weight @ z)), point, None) for point in x])
    moved = np.asarray(x) + inside
    assert ((moved == 0) | (moved == 1)).any() and ((moved > 0) & (moved < 1)).any()


BOXES = [
    (0.0, 1.0),
    (-1.0, 1.0),
    (0.1, 0.9),
    (-3.0, 1e-3),
    (0.0, 255.0),
    (1 / 3, 2 / 3),
    (-1e-9, 1e9),
]


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_the_box_is_kept_to_the_last_bit(order):
    """Whatever its edges, a rounded sum must not leave it, as roots of pixels would tell."""
    generator = np.random.default_rng(0)

    @eqx.filter_jit
    def moved(perturbation, x):
        return jax.vmap(lambda point: perturbation(lambda z: network(WEIGHTS, z), point, None))(x)

    edges = 0
    for low, high in BOXES:
        x = generator.uniform(low, high, (200, 4))
        x[:5], x[5:10] = low, high
        close = (high - low) * 10.0 ** generator.uniform(-18, 0, (50, 4))
        x[10:60], x[60:110] = low + close, high - close
        x = np.clip(x, low, high)
        for share in (1e-12, 0.3, 1.0, 30.0):
            radius = share * (high - low)
            options = {"step_size": radius, "num_steps": 3, "box": (low, high)}
            perturbation = perturbations.pgd(radius, order=order, **options)
            delta = np.asarray(moved(perturbation, x))
            assert ((low <= x + delta) & (x + delta <= high)).all()
            lengths = np.linalg.norm(delta, order, axis=1)
            assert lengths.max() <= radius * (1 + 1e-14)
            edges += np.sum((x + delta == low) | (x + delta == high))
    assert edges > 1000  # the box did something


def test_within_the_box_the_attack_never_asks_for_the_root_of_less_than_nothing():
    x = np.random.default_rng(0).uniform(0, 1, (20, 4))
    x[0] = 1e-300, 1.0, 0.5, 1e-17
    perturbation = perturbations.pgd(0.3, box=(0.0, 1.0))

    def margin(z):
        # Where a root would be NaN, and its slope with it, but not infinite at 0.
        return jnp.sum(jnp.asarray([1.0, -2.0, 0.5, 3.0]) * jnp.where(z < 0, jnp.nan, z))

    delta = jax.jit(jax.vmap(lambda point: perturbation(margin, point, None)))(x)
    assert np.isfinite(delta).all()


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_steps_of_any_length_end_where_the_ball_does(order):
    gradient = np.array([3.0, -1.0, 0.5])

    @eqx.filter_jit
    def attacked(radius, step_size):
        perturbation = perturbations.pgd(radius, order=order, step_size=step_size, num_steps=7)
        return perturbation(lambda z: gradient @ z, jnp.zeros(3), None)

    for radius in (1e-300, 1e-150, 0.7, 1e10, 1e150):
        for step_size in (1e-3 * radius, radius, 1e16, 1e20, 1e100, 1e155, 1e200, 1.7e308):
            expected = -min(radius, 7 * step_size) * steepest(gradient, order)
            np.testing.assert_allclose(
                attacked(np.asarray(radius), np.asarray(step_size)),
                expected,
                rtol=0,
                atol=1e-14 * abs(expected).max(),
            )


@pytest.mark.parametrize("name", [*STEPS, "fgsm_smoothed", "pgd_1", "pgd_2", "pgd_inf_random"])
def test_dead_gradient(name):
    """Zero weights, and a weight that leaves one input alone: delta and derivatives are finite."""

    def through_delta(weights):
        delta = attack(ALL[name], weights, X)
        return jnp.sum(delta * X), delta

    value_and_derivative = eqx.filter_jit(jax.value_and_grad(through_delta, has_aux=True))
    for first in (0.0 * WEIGHTS[0], WEIGHTS[0] * np.array([1.0, 0.0, 1.0, 1.0])):
        (_, delta), derivative = value_and_derivative((first, *WEIGHTS[1:]))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((delta, derivative)))
        if ALL[name].starts(*X.shape) is None:
            np.testing.assert_array_equal(np.asarray(delta)[:, 1], 0)
    (_, alive), derivative = value_and_derivative(WEIGHTS)
    assert abs(np.asarray(alive)).max() > 0
    # Along the weights nothing changes: delta is 0-homogeneous.
    radial = sum(np.sum(a * b) for a, b in zip(WEIGHTS, derivative, strict=True))
    assert abs(radial) < 1e-12


@pytest.mark.parametrize("name", ["fgm_2", "pgd_1"])
def test_radius_sweep(name):
    """Many radii in one `vmap`, zero among them, with a finite derivative in the radius."""

    def at(radius, weights):
        perturbation = eqx.tree_at(lambda p: p.radius, ALL[name], radius)
        return attack(perturbation, weights, X)

    radii = np.array([0.0, 1e-200, 1e-3, RADIUS])
    swept = np.asarray(eqx.filter_jit(jax.vmap(at, (0, None)))(radii, WEIGHTS))
    assert np.isfinite(swept).all()
    np.testing.assert_array_equal(swept[0], 0)
    np.testing.assert_allclose(swept[-1], attack(ALL[name], WEIGHTS, X), rtol=1e-12, atol=1e-15)
    slope = eqx.filter_jit(jax.jacfwd(at))
    assert np.isfinite(slope(0.0, WEIGHTS)).all() and np.isfinite(slope(RADIUS, WEIGHTS)).all()


def test_constructed_under_vmap():
    radii = np.array([0.1, RADIUS])
    swept = jax.jit(jax.vmap(lambda radius: attack(fgm(radius), WEIGHTS, X)))(radii)
    np.testing.assert_allclose(swept[1], attack(fgm(RADIUS), WEIGHTS, X), rtol=1e-14)


def test_default_step_size():
    own = attack(perturbations.pgd(RADIUS, order=2, num_steps=5), WEIGHTS, X)
    spelled = perturbations.pgd(RADIUS, order=2, num_steps=5, step_size=0.5 * RADIUS)
    np.testing.assert_allclose(own, attack(spelled, WEIGHTS, X), rtol=1e-13, atol=1e-15)


def test_no_start_is_none():
    assert all(ALL[name].starts(3, 4) is None for name in ("clean", "fgm_2", "pgd_2"))


@pytest.mark.parametrize("order", [2, 2.0, np.float64(2), np.int64(2), np.float32(2)], ids=repr)
def test_orders_are_equal_however_they_are_written(order):
    assert fgm(0.1, order=order) == fgm(0.1)
    assert type(fgm(0.1, order=order).order) is float


def test_rebuilt_perturbations_are_equal():
    assert fgsm(0.1, smoothing=0.0) == fgsm(0.1) != fgsm(0.2)
    assert perturbations.pgd(0.1, box=(0, 1)) == perturbations.pgd(0.1, box=(0.0, 1.0))
    assert fgsm(0.0).radius == 0 and clean().radius == 0
    for built in ALL.values():
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(built))


REFUSED = [
    (ValueError, lambda: fgm(-0.1)),
    (ValueError, lambda: fgm(math.nan)),
    (TypeError, lambda: fgm("0.1")),
    (TypeError, lambda: fgm([0.1, 0.2])),
    (TypeError, lambda: fgm(np.array([0.1, 0.2]))),
    (TypeError, lambda: fgm(jnp.array([0.1, 0.2]))),
    (ValueError, lambda: fgm(0.1, order=0.5)),
    (ValueError, lambda: fgm(0.1, order=math.nan)),
    (TypeError, lambda: fgm(0.1, order="inf")),
    (TypeError, lambda: fgm(0.1, order=True)),
    (ValueError, lambda: fgsm(0.1, smoothing=-1.0)),
    (ValueError, lambda: perturbations.pgd(0.1, order=3)),
    (ValueError, lambda: perturbations.pgd(0.1, num_steps=0)),
    (ValueError, lambda: perturbations.pgd(0.1, step_size=-1.0)),
    (TypeError, lambda: perturbations.pgd(0.1, random_start=0.5)),
    (ValueError, lambda: perturbations.pgd(0.1, random_start=-1)),
    (ValueError, lambda: perturbations.pgd(0.1, box=(1.0, 0.0))),
    (TypeError, lambda: perturbations.pgd(0.1, box=1.0)),
    (TypeError, lambda: perturbations.pgd(0.1, box=(0.0, 0.5, 1.0))),
    (ValueError, lambda: perturbations.pgd(0.1, box=(0.0, 1.0)).check_fits(np.array([[1.5]]))),
]


@pytest.mark.parametrize(("error", "call"), REFUSED)
def test_refusals(error, call):
    with pytest.raises(error, match=r"radius|order|smoothing|num_steps|step_size|random_start|box"):
        call()
