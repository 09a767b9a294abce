"""What is refused at the door, before anything is integrated, and in which words."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow.losses
from gflow import homogeneity, networks
from gflow._numerics import norm
from gflow._parts import is_of_gflow
from gflow.datasets import Dataset, gaussian
from gflow.loss_checks import check_loss
from gflow.perturbations import AbstractPerturbation, FastGradient, clean, fgm, pgd
from gflow.problem import Problem
from gflow.validation import check_start, check_x64

pytestmark = pytest.mark.usefixtures("own_words")


BINARY = gaussian(6, 3)
CLASSES = Dataset(BINARY.x, np.array([0, 1, 2, 0, 1, 2]))
WEIGHTS = (np.ones((2, 3)), np.array([[1.0, -2.0]]))


def problem(network=None, dataset=BINARY):
    network = networks.mlp((3, 2, 1)) if network is None else network
    return Problem(network, dataset, loss=gflow.losses.logistic())


def custom(apply, degree=1):
    return problem(networks.custom(apply, degree=degree))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, jnp.float64, jnp.bfloat16])
def test_sound_parameters_become_double_arrays(kind):
    params = tuple(jnp.asarray(w, kind) for w in WEIGHTS)
    checked = check_start(problem(), params)
    assert all(isinstance(w, jax.Array) and w.dtype == np.float64 for w in checked)
    jax.tree.map(np.testing.assert_array_equal, checked, WEIGHTS)
    assert jax.tree.structure(checked) == jax.tree.structure(params)


def test_plain_numbers_are_parameters():
    checked = check_start(custom(lambda p, x: p["a"] * x[0] + p["b"] * x[1]), {"a": 1, "b": 2.5})
    assert {name: float(leaf) for name, leaf in checked.items()} == {"a": 1.0, "b": 2.5}


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (networks.linear(3), 1e-200),
        (networks.mlp((3, 4, 3, 1), power=1.5), 1e150),
        (networks.mlp((3, 4, 1), smoothing=0.1, power=2, bias=True), 1.0),
        (networks.diagonal(3, 4), 1e100),
        (networks.mlp((3, 2, 1), power=3), -1.0),
    ],
)
def test_networks_of_every_size_are_homogeneous_of_their_degree_alone(network, size):
    params = tuple(size * w for w in network.init(0))
    jax.tree.map(np.testing.assert_array_equal, check_start(problem(network), params), params)
    claimed = custom(lambda p, x: network.apply(p, x), network.degree + 1)
    with pytest.raises(ValueError, match="not homogeneous of degree"):
        check_start(claimed, params)


def dead(params, x):
    """Zero at every x."""
    return jnp.sum(params * jax.nn.relu(-jnp.sum(x * x)))


def test_dead_networks_are_let_in():
    """What is zero is homogeneous; the run will say that it never separates the examples."""
    np.testing.assert_array_equal(check_start(custom(dead), np.ones(3)), np.ones(3))
    # A wrong degree shows at the examples at which the network is not zero.
    first = BINARY.x[0] / np.sum(BINARY.x[0] ** 2)
    with pytest.raises(ValueError, match="not homogeneous of degree 2"):
        check_start(custom(lambda p, x: jnp.sum(p) * jax.nn.relu(x @ first - 0.99), 2), np.ones(3))


def second_bias(params, x):
    """A network with a bias in its second layer, which is usually zero at the start."""
    first, second, bias = params
    return second @ jax.nn.relu(first @ x) + bias


def residual(params, x):
    return jnp.sum(params[1] @ (x[:2] + jax.nn.relu(params[0] @ x)))


def normalised(params, x):
    hidden = params[0] @ x
    return jnp.sum(params[1] @ (hidden / jnp.linalg.norm(hidden)))


def cube(params, x):
    """Of degree 3."""
    return params[1][0] @ jax.nn.relu(params[0] @ x) ** 2


# At norms from 1/2 to 2 they are homogeneous of degree 3, to the accuracy of the check.
FAR = {
    "clipped output": lambda p, x: jnp.clip(cube(p, x), -1e3, 1e3),
    "saturating output": lambda p, x: 1e6 * jnp.tanh(cube(p, x) / 1e6),
    "small constant": lambda p, x: cube(p, x) + 1e-8,
    "NaN far out": lambda p, x: jnp.where(jnp.max(jnp.abs(p[0])) > 1e4, jnp.nan, cube(p, x)),
}


@pytest.mark.parametrize("name", FAR)
def test_homogeneity_is_looked_at_far_from_norm_1_too(name):
    check_start(custom(cube, 3), WEIGHTS)
    words = "at parameters of norm" if name.startswith("NaN") else "not homogeneous of degree 3"
    with pytest.raises(ValueError, match=words):
        check_start(custom(FAR[name], 3), WEIGHTS)


def hidden_gradient(params, x):
    return cube((jax.lax.stop_gradient(params[0]), params[1]), x)


def random_network(params, x):
    return np.random.default_rng().normal() * cube(params, x)


class Random(AbstractPerturbation):
    """Draws anew whenever it is traced."""

    radius: float = eqx.field(static=True, default=0.1)
    order: float = eqx.field(static=True, default=2.0)

    def __call__(self, margin, x, start):
        return jnp.asarray(0.05 * np.random.default_rng().normal(size=x.shape))


def test_functions_that_are_not_pure_are_refused():
    """Each compiled program would hold random numbers of its own, and be right for them."""
    with pytest.raises(ValueError, match=r"`network.apply\(params, x\)` is another function"):
        check_start(custom(random_network, 3), WEIGHTS)
    attacked = Problem(
        networks.mlp((3, 2, 1)), BINARY, loss=gflow.losses.logistic(), perturbation=Random()
    )
    with pytest.raises(ValueError, match=r"`perturbation\(margin, x, start\)` is another function"):
        check_start(attacked, WEIGHTS)


class Longer(AbstractPerturbation):
    """Twice as long as its radius says."""

    radius: jax.Array
    order: float = eqx.field(static=True, default=math.inf)

    def __call__(self, margin, x, start):
        return -2 * self.radius * jnp.sign(jax.grad(margin)(x))


def test_perturbations_keep_to_their_radius():
    attacked = Problem(
        networks.mlp((3, 2, 1)),
        BINARY,
        loss=gflow.losses.logistic(),
        perturbation=Longer(jnp.asarray(0.1)),
    )
    with pytest.raises(ValueError, match=r"is 0\.2 long .* beyond its `radius` of 0\.1"):
        check_start(attacked, WEIGHTS)


def own_loss(**methods):
    """An exponential loss in which some methods are others."""
    return type("Own", (gflow.losses.Exponential,), methods)()


TWICE = {
    "log_value": lambda self, q: -2 * q,
    "log_slope": lambda self, q: jnp.log(2.0) - 2 * q,
    "inverse": lambda self, v: -v / 2,
}
LOSSES = {
    "exp(-q^2)": ("no exponential tail", {"log_slope": lambda self, q: -jnp.maximum(q, q**2)}),
    "a power": (
        "no exponential tail",
        {
            "log_value": lambda self, q: -2 * jnp.log1p(jax.nn.softplus(q)),
            "log_slope": lambda self, q: (
                jnp.log(2.0) - 3 * jnp.log1p(jax.nn.softplus(q)) + jax.nn.log_sigmoid(q)
            ),
        },
    ),
    "hinge": (
        "infinite at q = 10000",
        {"log_slope": lambda self, q: jnp.where(q < 1, 0.0, -np.inf)},
    ),
    "slope": ("`log_slope` is not", {"log_slope": lambda self, q: 1.0 - q}),
    "inverse": (r"`inverse\(log_value\(q\)\)` is not q", {"inverse": lambda self, v: v}),
    "float32": ("gives float32", {"log_value": lambda self, q: -jnp.float32(q)}),
    "sum": (r"of the shape \(\)", {"log_value": lambda self, q: -jnp.sum(q)}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_without_an_exponential_tail_or_of_parts_that_do_not_fit_are_refused(name):
    words, methods = LOSSES[name]
    check_loss(own_loss())
    check_loss(own_loss(**TWICE))
    with pytest.raises(ValueError, match=words):
        check_loss(own_loss(**methods))


GENERIC = tuple(np.random.default_rng(0).normal(size=w.shape) for w in WEIGHTS)


class SaysLinear(type(networks.linear(3))):
    """A deep linear network, but for what is done with its output."""

    after: Callable = eqx.field(static=True, default=lambda output: output)

    def apply(self, params, x):
        return self.after(super().apply(params, x))


def quantised(weights):
    """One of 15 multiples of the largest: homogeneous, with its own gradient almost everywhere."""
    unit = jnp.max(jnp.abs(weights)) / 7
    return unit * jnp.round(weights / unit)


def straight_through(weights):
    return weights + jax.lax.stop_gradient(quantised(weights) - weights)


@jax.custom_vjp
def rounded_backwards(value):
    return value


rounded_backwards.defvjp(lambda v: (v, None), lambda _, c: (c.astype(np.float32).astype(c.dtype),))


def with_constant_share(params, x):
    """Its first layer's share of the norm, of degree 0, is held constant."""
    first, last = (jnp.sum(jnp.square(leaf)) for leaf in params)
    return params[1][0] @ (params[0] @ x) * jax.lax.stop_gradient(first / (first + last))


SOUND = {
    "ReLU of eight layers": (lambda p, x: deep(p, x, jax.nn.relu), 8, (9, 9, 9, 9, 9, 9, 9)),
    "deep linear": (lambda p, x: deep(p, x, lambda a: a), 6, (5, 5, 5, 5, 5)),
    "ReLU^3": (lambda p, x: deep(p, x, lambda a: jax.nn.relu(a) ** 3), 13, (6, 6)),
    "leaky": (lambda p, x: deep(p, x, lambda a: jnp.where(a > 0, a, 0.01 * a)), 2, (8,)),
    "wide": (lambda p, x: deep(p, x, jax.nn.relu), 3, (200, 200)),
    "median": (lambda p, x: jnp.median(p[0] @ x), 1, (7,)),
    "largest two": (lambda p, x: jnp.sum(jax.lax.top_k(p[0] @ x, 2)[0]), 1, (7,)),
    "weight normalised": (lambda p, x: jnp.sum(p[1] * (p[0] @ x)) / norm(p[0]), 1, (5,)),
    "five digits cancel": (lambda p, x: jnp.sum(p[0] @ x) * (1e5 - (1e5 - 1)), 1, (5,)),
}


def deep(params, x, activation):
    for weights in params[:-1]:
        x = activation(weights @ x)
    return params[-1][0] @ x


@pytest.mark.parametrize("name", SOUND)
def test_sound_networks_are_accepted(name):
    """With kinks, many layers, large powers and lost digits."""
    apply, degree, widths = SOUND[name]
    generator = np.random.default_rng(0)
    shapes = zip((*widths, 1), (3, *widths), strict=True)
    check_start(custom(apply, degree), tuple(generator.normal(size=shape) for shape in shapes))


START = {
    "claimed degree": (
        ValueError,
        "not homogeneous of degree 3",
        lambda: (custom(lambda p, x: p[1][0] @ (p[0] @ x), degree=3), WEIGHTS),
    ),
    "hidden bias": (
        ValueError,
        "bias beyond the first layer",
        lambda: (custom(second_bias, 2), (WEIGHTS[0], WEIGHTS[1][0], np.zeros(()))),
    ),
    "residual": (ValueError, "residual connection", lambda: (custom(residual, 2), WEIGHTS)),
    "normalised": (ValueError, "normalisation", lambda: (custom(normalised, 2), WEIGHTS)),
    "NaN output": (
        ValueError,
        "gives NaN or infinity",
        lambda: (custom(lambda p, x: jnp.sum(p[0]) / jnp.sum(0 * p[0])), WEIGHTS),
    ),
    "vector": (
        ValueError,
        r"gives shape \(1,\), but the labels need \(\)",
        lambda: (custom(lambda p, x: p[1] @ (p[0] @ x), 2), WEIGHTS),
    ),
    "hidden gradient": (
        ValueError,
        "violates Euler's identity",
        lambda: (custom(hidden_gradient, 3), WEIGHTS),
    ),
    "float32": (
        ValueError,
        "gives float32 numbers although",
        lambda: (custom(lambda p, x: jnp.float32(p[1][0] @ (p[0] @ x)), 2), WEIGHTS),
    ),
    "float32 inside": (
        ValueError,
        "fewer digits than float64 has: its outputs",
        lambda: (custom(lambda p, x: jnp.float64(jnp.float32(p[1][0] @ (p[0] @ x))), 2), GENERIC),
    ),
    "float32 inputs": (
        ValueError,
        "fewer digits than float64 has: its gradient by the inputs",
        lambda: (custom(lambda p, x: p[1][0] @ (p[0] @ jnp.float64(jnp.float32(x))), 2), GENERIC),
    ),
    "float32 derivative": (
        ValueError,
        "fewer digits than float64 has: its gradient by the parameters",
        lambda: (custom(lambda p, x: p[1][0] @ rounded_backwards(p[0] @ x), 2), GENERIC),
    ),
    "bfloat16 inside": (
        ValueError,
        "a rounding or a derivative",
        lambda: (
            custom(lambda p, x: jnp.float64((p[1][0] @ (p[0] @ x)).astype(jnp.bfloat16)), 2),
            GENERIC,
        ),
    ),
    "quantised": (
        ValueError,
        r"rounded to a few values \(`jnp.round`",
        lambda: (custom(lambda p, x: quantised(p[1][0]) @ (quantised(p[0]) @ x), 2), GENERIC),
    ),
    "straight through": (
        ValueError,
        "derivative of one's own",
        lambda: (custom(lambda p, x: p[1][0] @ (straight_through(p[0]) @ x), 2), GENERIC),
    ),
    "gradient that Euler's identity misses": (
        ValueError,
        "difference quotients differ from it",
        lambda: (custom(with_constant_share, 2), GENERIC),
    ),
    "not linear as it says": (
        ValueError,
        "`linear_in_inputs`, but",
        lambda: (problem(SaysLinear((3, 2, 1), jnp.abs)), GENERIC),
    ),
    "no array": (
        ValueError,
        "gives shape None",
        lambda: (custom(lambda p, x: None), WEIGHTS),
    ),
    "classes": (
        ValueError,
        r"the labels need \(3,\)",
        lambda: (
            problem(networks.custom(lambda p, x: jnp.sum(p[0] @ x), degree=1), CLASSES),
            WEIGHTS,
        ),
    ),
    "other network": (
        ValueError,
        r"apply\(params, x\)` fails for x of shape \(3,\)",
        lambda: (problem(), (np.ones((2, 4)), np.ones((1, 2)))),
    ),
    "other structure": (ValueError, "`network.init", lambda: (problem(), {"w": np.ones(3)})),
    "empty": (ValueError, "`params` holds no arrays", lambda: (problem(), ())),
    "none": (ValueError, "`params` holds no arrays", lambda: (problem(), None)),
    "no elements": (
        ValueError,
        "`params` is zero",
        lambda: (custom(lambda p, x: jnp.sum(p) * x[0]), np.zeros(0)),
    ),
    "zero": (
        ValueError,
        "`params` is zero.*stationary",
        lambda: (problem(), jax.tree.map(np.zeros_like, WEIGHTS)),
    ),
    "NaN": (ValueError, "NaN or infinity", lambda: (problem(), (np.nan * WEIGHTS[0], WEIGHTS[1]))),
    "infinite": (
        ValueError,
        "NaN or infinity",
        lambda: (problem(), (WEIGHTS[0], WEIGHTS[1] * np.inf)),
    ),
    "string": (TypeError, "`params` holds 'w'", lambda: (problem(), ("w", WEIGHTS[1]))),
    "function": (TypeError, "every leaf must be", lambda: (problem(), (jnp.tanh, WEIGHTS[1]))),
    "bool": (TypeError, "`params` holds True", lambda: (problem(), (True, WEIGHTS[1]))),
    "bools": (TypeError, "every leaf must be", lambda: (problem(), (WEIGHTS[0] > 0, WEIGHTS[1]))),
    "complex": (
        TypeError,
        "array of complex128; every",
        lambda: (problem(), (WEIGHTS[0] * 1j, WEIGHTS[1])),
    ),
    "key": (TypeError, "every leaf", lambda: (problem(), (jax.random.key(0), WEIGHTS[1]))),
    "objects": (
        TypeError,
        "every leaf",
        lambda: (problem(), (WEIGHTS[0].astype(object), WEIGHTS[1])),
    ),
}


def test_a_network_that_is_linear_as_it_says_is_taken():
    check_start(problem(SaysLinear((3, 2, 1))), GENERIC)


@pytest.mark.parametrize(("error", "words", "make"), START.values(), ids=START)
def test_refused_starts(error, words, make):
    with pytest.raises(error, match=words):
        check_start(*make())


class Attack(AbstractPerturbation):
    """An attack of a user's own: `step` of the margin's gradient, projected onto the ball."""

    step: Callable = eqx.field(static=True)
    radius: float = 0.3
    order: float = 2.0

    def __call__(self, margin, x, start):
        delta = jnp.zeros_like(x)
        for _ in range(3):
            delta = delta - self.step(jax.grad(margin)(x + delta))
            delta = delta * jnp.minimum(1.0, self.radius / jnp.maximum(norm(delta), 1e-300))
        return delta


NETWORKS = {
    "linear": networks.linear(3),
    "ReLU": networks.mlp((3, 4, 1)),
    "ReLU^1.5": networks.mlp((3, 4, 4, 1), power=1.5),
}
INVARIANT = {
    "unit": lambda g: 0.2 * g / norm(g),
    "sign": lambda g: 0.2 * jnp.sign(g),
    "largest": lambda g: 0.2 * g / jnp.max(jnp.abs(g)),
    "nothing": lambda g: 0 * g,
}
DEPENDENT = {
    "raw": lambda g: 0.01 * g,
    "tiny": lambda g: 1e-9 * g,
    "guarded": lambda g: 0.2 * g / (norm(g) + 1e-3),
    "squashed": lambda g: 0.2 * jnp.tanh(g),
    "NaN": lambda g: jnp.sqrt(1e-3 - norm(g)) * g,
}


def attacked(network, step):
    return Problem(network, BINARY, loss=gflow.losses.logistic(), perturbation=Attack(step))


ATTACKED = [
    (network, step) for network in ("linear", "ReLU^1.5") for step in ("unit", "sign", "largest")
]


@pytest.mark.parametrize(("network", "step"), [*ATTACKED, ("ReLU", "unit"), ("ReLU", "nothing")])
def test_scale_invariant_attacks_of_a_users_own_are_let_in(network, step):
    network, step = NETWORKS[network], INVARIANT[step]
    for size in (1e-3, 1.0, 1e6):
        check_start(attacked(network, step), tuple(size * w for w in network.init(0)))


REFUSED = [("linear", step) for step in DEPENDENT] + [("ReLU", "raw"), ("ReLU^1.5", "guarded")]


@pytest.mark.parametrize(("network", "step"), REFUSED)
def test_attacks_that_depend_on_the_norm_are_refused(network, step):
    words = "NaN or infinite" if step == "NaN" else "not scale invariant: delta"
    network, step = NETWORKS[network], DEPENDENT[step]
    with pytest.raises(ValueError, match=words):
        check_start(attacked(network, step), network.init(0))


class Scalar(AbstractPerturbation):
    """An attack that forgot the axis of the inputs."""

    radius: float = 0.3
    order: float = 2.0

    def __call__(self, margin, x, start):
        return jnp.zeros(())


def test_an_attack_of_another_shape_is_refused():
    trained = Problem(
        networks.linear(3), BINARY, loss=gflow.losses.logistic(), perturbation=Scalar()
    )
    with pytest.raises(ValueError, match=r"gives the shape \(\), expected that of `x`, \(3,\)"):
        check_start(trained, networks.linear(3).init(0))


class Single(AbstractPerturbation):
    """An attack in single precision."""

    radius: float = 0.3
    order: float = 2.0

    def __call__(self, margin, x, start):
        return jnp.zeros(x.shape, jnp.float32)


class Failing(Single):
    def __call__(self, margin, x, start):
        return -x if margin(x) > 0 else x


@pytest.mark.parametrize(("attack", "words"), [(Single(), "gives float32"), (Failing(), "fails: ")])
def test_an_attack_that_fails_or_is_of_another_type_is_refused(attack, words):
    trained = Problem(networks.linear(3), BINARY, loss=gflow.losses.logistic(), perturbation=attack)
    with pytest.raises(ValueError, match=rf"`perturbation\(margin, x, start\)` {words}"):
        check_start(trained, networks.linear(3).init(0))


def test_attacks_of_gflow_are_not_looked_at(monkeypatch):
    """They are invariant by construction, and compilation is what users wait for."""
    monkeypatch.setattr(homogeneity, "_invariance_error", None)
    for attack in (clean(), fgm(0.1), pgd(0.1)):
        trained = Problem(MLP, BINARY, loss=gflow.losses.logistic(), perturbation=attack)
        check_start(trained, WEIGHTS)


OWN_NETWORKS = [
    networks.linear(3),
    networks.deep_linear((3, 5, 1)),
    networks.mlp((3, 4, 2, 1), bias=True),
    networks.diagonal(3, 2),
    networks.conv((1, 3, 1), [networks.Convolution(2, (2, 1)), networks.Dense(1)]),
]


@pytest.mark.parametrize("network", OWN_NETWORKS)
def test_networks_of_gflow_are_not_looked_at(network, monkeypatch):
    """They are homogeneous by construction."""
    monkeypatch.setattr(homogeneity, "_degree_error", None)
    check_start(problem(network), network.init(0))


def test_what_gflow_defines_is_told_from_what_holds_a_function_of_the_user():
    of_gflow = [*OWN_NETWORKS, clean(), fgm(0.1), pgd(0.1), gflow.losses.logistic()]
    assert all(map(is_of_gflow, of_gflow))
    assert not is_of_gflow(networks.custom(lambda p, x: p @ x, degree=1))
    assert not is_of_gflow(Shifted((3, 2, 1), 1, False, None))


class Shifted(networks.MLP):
    """A user's subclass, which is not homogeneous."""

    def apply(self, params, x):
        return super().apply(params, x) + 1.0


class Stretched(FastGradient):
    """A user's subclass, which depends on the norm of the parameters."""

    def __call__(self, margin, x, start):
        return super().__call__(margin, x, start) + 0.01 * jax.grad(margin)(x)


def test_a_users_subclass_of_a_class_of_gflow_is_looked_at():
    own = Shifted((3, 2, 1), 1, False, None)
    with pytest.raises(ValueError, match="not homogeneous of degree 2"):
        check_start(problem(own), WEIGHTS)
    trained = Problem(
        MLP, BINARY, loss=gflow.losses.logistic(), perturbation=Stretched(0.1, 2.0, None)
    )
    with pytest.raises(ValueError, match="not scale invariant"):
        check_start(trained, WEIGHTS)


@pytest.mark.parametrize("network", [networks.linear(3, num_outputs=3), *OWN_NETWORKS[1:]])
def test_parameters_have_the_shapes_that_the_network_says(network):
    shapes = [leaf.shape for leaf in jax.tree.leaves(network.init(0))]
    assert shapes == network.parameter_shapes


def test_a_network_in_place_of_a_problem_is_refused():
    with pytest.raises(TypeError, match=r"expected a `gflow.Problem`, got MLP.*integrate\(problem"):
        check_start(networks.mlp((3, 2, 1)), WEIGHTS)


def test_single_precision_is_refused():
    check_x64()
    with jax.enable_x64(False):
        for call in (check_x64, lambda: check_start(problem(), WEIGHTS)):
            with pytest.raises(
                ValueError, match=r"needs float64.*\"jax_enable_x64\", True.*JAX_EN"
            ):
                call()


METHODS = {
    "perturbations": lambda trained: trained.perturbations(WEIGHTS),
    "margins": lambda trained: trained.margins(WEIGHTS),
    "clean_margins": lambda trained: trained.clean_margins(WEIGHTS),
    "margins_at": lambda trained: trained.margins_at(WEIGHTS, np.zeros_like(BINARY.x)),
    "log_loss": lambda trained: trained.log_loss(WEIGHTS),
    "gradient": lambda trained: trained.gradient(WEIGHTS),
    "ascent": lambda trained: trained.ascent(WEIGHTS),
    "linearize": lambda trained: trained.linearize(WEIGHTS)[0],
    "margin_gradients": lambda trained: trained.margin_gradients(WEIGHTS, np.arange(2)),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_a_problem_refuse_single_precision(method):
    call = METHODS[method]
    with jax.enable_x64(False):
        trained = problem()  # may be described before float64 is switched on
        with pytest.raises(ValueError, match="needs float64"):
            call(trained)
    call(trained)
    with jax.enable_x64(False), pytest.raises(ValueError, match="needs float64"):
        call(trained)


LOSS = gflow.losses.logistic()
MLP = networks.mlp((3, 2, 1))
PROBLEMS = {
    "dataset first": (TypeError, "`network`", lambda: Problem(BINARY, MLP, loss=LOSS)),
    "arrays": (TypeError, "(?s)`dataset`.*Dataset", lambda: Problem(MLP, BINARY.x, loss=LOSS)),
    "loss not called": (
        TypeError,
        r"`loss`.*Call it first: `logistic\(...\)`",
        lambda: Problem(MLP, BINARY, loss=gflow.losses.logistic),
    ),
    "loss by name": (TypeError, "`loss` is 'hinge'", lambda: Problem(MLP, BINARY, loss="hinge")),
    "perturbation not called": (
        TypeError,
        r"`perturbation`.*Call it first: `fgm\(...\)`",
        lambda: Problem(MLP, BINARY, loss=LOSS, perturbation=fgm),
    ),
    "radius alone": (
        TypeError,
        "`perturbation` is 0.1",
        lambda: Problem(MLP, BINARY, loss=LOSS, perturbation=0.1),
    ),
    "gradient": (
        ValueError,
        r"`Problem\(gradient='full'\)`: choose 'frozen' or 'total'",
        lambda: Problem(MLP, BINARY, loss=LOSS, gradient="full"),
    ),
    "inputs": (
        ValueError,
        "takes 5 inputs but the data have 3",
        lambda: Problem(networks.linear(5), BINARY, loss=LOSS),
    ),
    "image": (
        ValueError,
        "takes 4 inputs but the data have 3",
        lambda: Problem(networks.conv((1, 2, 2), [networks.Dense(1)]), BINARY, loss=LOSS),
    ),
    "two outputs": (
        ValueError,
        r"has 2 output\(s\) but labels are -1 and \+1",
        lambda: Problem(networks.mlp((3, 2, 2)), BINARY, loss=LOSS),
    ),
    "three classes": (
        ValueError,
        r"has 1 output\(s\) but labels are classes 0 .. 2, which need 3",
        lambda: Problem(MLP, CLASSES, loss=LOSS),
    ),
    "claimed inputs": (
        ValueError,
        "takes 2 inputs",
        lambda: Problem(networks.custom(abs, degree=1, num_inputs=2), BINARY, loss=LOSS),
    ),
    "box": (
        ValueError,
        r"`pgd\(box=",
        lambda: Problem(MLP, BINARY, loss=LOSS, perturbation=pgd(0.1, box=(0, 1e-3))),
    ),
}


@pytest.mark.parametrize(("error", "words", "call"), PROBLEMS.values(), ids=PROBLEMS)
def test_refused_problems(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_fitting_problems_are_let_in():
    assert problem().perturbation == clean()
    problem(networks.custom(abs, degree=1))
    problem(networks.mlp((3, 3)), CLASSES)
    assert isinstance(eqx.tree_at(lambda p: p.dataset, problem(), BINARY), Problem)
