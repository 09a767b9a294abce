"""Laws that every network, perturbation and loss obeys: a new member is one more row.

Everything about a row comes from one compiled function, called at several parameters. The losses
and the gradient modes see nothing of network and perturbation but margins and their gradients:
their pairs are spread over the table like the colours of a map, so that every network and every
perturbation meets every pair. Every network under one attack, and one network under an attack of
each kind, have all pairs, for the laws of the gradient. Rows outside a core are marked slow, for
their compilation.
"""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _oracles import LOSSES, central_difference, lp_norm

import gflow.losses
import gflow.networks
from gflow.datasets import Dataset
from gflow.networks import AveragePool, Convolution, Custom, Decided, Dense, MaxPool
from gflow.perturbations import FastGradient, clean, fgm, fgsm, pgd
from gflow.problem import Problem

EPS = np.finfo(np.float64).eps
RADIUS = 0.2
X = np.random.default_rng(5).uniform(0.1, 0.9, size=(4, 3))
BINARY = Dataset(X, np.array([1.0, -1.0, -1.0, 1.0]))
CLASSES = Dataset(X, np.array([0, 1, 2, 1]))


def squared_gate(params, x):
    """A user's network, of degree 3: `a . (b * x)^2`."""
    a, b = params["a"], params["b"]
    return jnp.sum(a * (b * x) ** 2)


NETWORKS = {
    "linear": lambda: gflow.networks.linear(3),
    "deep_linear": lambda: gflow.networks.deep_linear((3, 2, 1)),
    "diagonal": lambda: gflow.networks.diagonal(3, 3),
    "mlp": lambda: gflow.networks.mlp((3, 4, 1), bias=True),
    "mlp_smoothed": lambda: gflow.networks.mlp((3, 4, 1), power=2, smoothing=0.1),
    "mlp_classes": lambda: gflow.networks.mlp((3, 5, 3)),
    "custom": lambda: gflow.networks.custom(squared_gate, degree=3),
    "conv": lambda: gflow.networks.conv((1, 3, 1), [Convolution(2, (2, 1)), Dense(1)]),
    "conv_pooled": lambda: gflow.networks.conv(
        (1, 3, 1),
        [Convolution(3, (2, 1)), MaxPool((2, 1), stride=1), AveragePool((2, 1)), Dense(1)],
        power=2,
    ),
}
PERTURBATIONS = {
    "clean": lambda radius: clean(),
    "fgm_1": lambda radius: fgm(radius, order=1),
    "fgm_1.3": lambda radius: fgm(radius, order=1.3),
    "fgm_2": lambda radius: fgm(radius),
    "fgsm": lambda radius: fgsm(radius),
    "fgsm_smoothed": lambda radius: fgsm(radius, smoothing=0.1),
    "pgd_1": lambda radius: pgd(radius, order=1, num_steps=3),
    "pgd_2_random": lambda radius: pgd(radius, order=2, num_steps=3, random_start=0),
    "pgd_inf_box": lambda radius: pgd(radius, num_steps=3, box=(0.0, 1.0)),
}
# With a `predictor`, which gives the margins in closed form.
LINEAR = ["linear", "deep_linear", "diagonal"]
EXACT_ON_LINEAR = ["clean", "fgm_1", "fgm_1.3", "fgm_2", "fgsm", "pgd_1"]
# Every loss in every gradient mode.
COLOURS = list(
    itertools.product([getattr(gflow.losses, name)() for name in LOSSES], ("frozen", "total"))
)


def table(*, core):
    """All rows, one colour each; those outside `core(network, perturbation)` are marked slow."""
    for network, perturbation in itertools.product(NETWORKS, PERTURBATIONS):
        yield pytest.param(
            network,
            perturbation,
            *colours_from(network, perturbation)[0],
            marks=() if core(network, perturbation) else pytest.mark.slow,
            id=f"{network}-{perturbation}",
        )


def other_colours(*, rows):
    """The other colours of the rows where `rows(network, perturbation)`; slow but for one."""
    for network, perturbation in itertools.product(NETWORKS, PERTURBATIONS):
        if not rows(network, perturbation):
            continue
        for loss, mode in colours_from(network, perturbation)[1:]:
            first = (network, perturbation) == ("mlp", "fgm_2")
            yield pytest.param(
                network,
                perturbation,
                loss,
                mode,
                marks=() if first else pytest.mark.slow,
                id=f"{network}-{perturbation}-{type(loss).__name__.lower()}-{mode}",
            )


def colours_from(network, perturbation):
    """All colours, the row's own first."""
    first = list(NETWORKS).index(network) + list(PERTURBATIONS).index(perturbation)
    return [COLOURS[(first + k) % len(COLOURS)] for k in range(len(COLOURS))]


@functools.cache
def parameters(network):
    generator = np.random.default_rng(1)
    if network == "custom":
        return {"a": generator.normal(size=3), "b": generator.normal(size=3)}
    # Noise, since the two halves of a diagonal network start equal.
    initial = NETWORKS[network]().init(0)
    return jax.tree.map(lambda leaf: leaf + 0.3 * generator.normal(size=leaf.shape), initial)


num_traces = 0


class Row:
    """One network under one perturbation, with one loss and one gradient mode."""

    def __init__(self, network, perturbation, loss, mode):
        self.names, self.loss, self.mode = (network, perturbation), loss, mode
        self.network = NETWORKS[network]()
        self.perturbation = PERTURBATIONS[perturbation](RADIUS)
        self.dataset = CLASSES if network == "mlp_classes" else BINARY
        self.params = parameters(network)
        self.delta, self.ascent = self.observe(self.params)

    def problem(self, radius=RADIUS):
        """Rebuilt from scratch at each call."""
        network, perturbation = self.names
        return Problem(
            NETWORKS[network](),
            self.dataset,
            loss=self.loss,
            perturbation=PERTURBATIONS[perturbation](radius),
            gradient=self.mode,
        )

    def observe(self, params, radius=RADIUS, log_kappa=0.0):
        """Perturbations and ascent at any parameters."""
        return observe(self.problem(radius), params, np.float64(log_kappa))


@eqx.filter_jit
def observe(problem, params, log_kappa):
    global num_traces
    num_traces += 1
    return problem.perturbations(params), problem.ascent(params, log_kappa)


@eqx.filter_jit
def margins_at(problem, params, delta):
    return problem.margins_at(params, delta)


@eqx.filter_jit
def log_loss(loss, margins):
    return loss.log_loss(margins)


@pytest.fixture
def case(network, perturbation, loss, mode):
    return row(network, perturbation, loss, mode)


row = functools.cache(Row)
columns = ("network", "perturbation", "loss", "mode")


def of_each_kind(network, perturbation):
    kinds = ("fgsm_smoothed", "pgd_2_random", "pgd_inf_box")
    return perturbation == "fgm_2" or (network == "mlp" and perturbation in kinds)


TABLE = list(table(core=lambda network, perturbation: network == "mlp" or perturbation == "fgm_2"))
every_row = pytest.mark.parametrize(columns, TABLE)
every_colour = pytest.mark.parametrize(columns, [*TABLE, *other_colours(rows=of_each_kind)])


def scaled(factor, params):
    return jax.tree.map(lambda leaf: factor * np.asarray(leaf), params)


def shifted(params, direction, multiple):
    return jax.tree.map(lambda leaf, move: np.asarray(leaf) + multiple * move, params, direction)


def dot(left, right):
    products = jax.tree.map(lambda a, b: float(np.sum(np.asarray(a) * b)), left, right)
    return sum(jax.tree.leaves(products))


# Without compilation each operation is compiled alone, which takes longer still.
@pytest.mark.parametrize(columns, list(table(core=lambda network, _: network == "mlp")))
def test_compiled_and_mapped_as_plain_and_alone(case):
    problem, index = case.problem(), 1
    x, y = jnp.asarray(X[index]), jnp.asarray(case.dataset.y[index])
    start = None if problem.starts is None else jnp.asarray(problem.starts[index])
    with jax.disable_jit():
        params = jax.tree.map(jnp.asarray, case.params)
        attack = problem._one.attack(params, x, y, start)
        margin = problem._one.attacked_margin(params, x, y, attack)
    np.testing.assert_allclose(case.delta[index], attack.delta, rtol=0, atol=1e-13)
    np.testing.assert_allclose(case.ascent.margins[index], margin, rtol=0, atol=1e-13)


@every_row
def test_rebuilt_problems_are_equal_and_not_traced_again(case):
    assert case.problem() == case.problem()
    before = num_traces
    delta, _ = case.observe(scaled(1.1, case.params), radius=0.1, log_kappa=1.0)
    assert num_traces == before
    assert case.perturbation == clean() or not np.array_equal(delta, case.delta)


@every_row
def test_everything_is_double(case):
    leaves = jax.tree.leaves((case.delta, case.ascent))
    assert all(leaf.dtype == np.float64 and not leaf.weak_type for leaf in leaves)


@every_row
def test_length_of_the_perturbation(case):
    order, one_step = case.perturbation.order, isinstance(case.perturbation, FastGradient)
    lengths = np.array([lp_norm(delta, order) for delta in np.asarray(case.delta)])
    if case.perturbation == clean():
        assert not lengths.any()
    elif one_step and case.perturbation.smoothing is None:
        np.testing.assert_allclose(lengths[lengths > 0], RADIUS, rtol=16 * EPS)
        assert (lengths > 0).any()
    else:
        assert (lengths <= RADIUS * (1 + 16 * EPS)).all() and lengths.any()


@every_colour
def test_homogeneity(case):
    for factor in (1e-3, 3.0, 1e6):
        delta, ascent = case.observe(scaled(factor, case.params))
        kappa = factor**case.network.degree
        # Rounding of a few layers and steps.
        np.testing.assert_allclose(delta, case.delta, rtol=0, atol=1e-13)
        np.testing.assert_allclose(ascent.margins / kappa, case.ascent.margins, rtol=0, atol=1e-13)


@every_colour
def test_weights_at_another_norm(case):
    log_kappa = 2.0
    _, read = case.observe(case.params, log_kappa=log_kappa)
    _, there = case.observe(scaled(np.exp(log_kappa / case.network.degree), case.params))
    np.testing.assert_allclose(read.weights, there.weights, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(read.log_weight, there.log_weight, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.sum(read.weights), 1, rtol=16 * EPS)


@every_colour
def test_euler_identity(case):
    for log_kappa in (-1.0, 0.0, 3.0):  # weights of several kinds
        _, ascent = case.observe(case.params, log_kappa=log_kappa)
        expected = case.network.degree * np.sum(ascent.weights * ascent.margins)
        np.testing.assert_allclose(dot(case.params, ascent.vector), expected, atol=1e-13)


@every_colour
def test_gradient_is_that_of_finite_differences(case):
    generator = np.random.default_rng(2)
    direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), case.params)
    plain = Problem(case.network, case.dataset, loss=gflow.losses.logistic())

    def loss(multiple):
        moved = shifted(case.params, direction, multiple)
        if case.mode == "frozen":
            margins = margins_at(plain, moved, case.delta)
        else:
            margins = case.observe(moved)[1].margins
        return np.exp(log_loss(case.loss, margins))

    # Truncation 1e-16 times a fifth derivative, rounding 1e-16 / 1e-4 times the loss.
    difference = central_difference(loss, 0.0, 1.0, 1e-4)
    slope = -np.exp(case.ascent.log_weight) * dot(case.ascent.vector, direction)
    np.testing.assert_allclose(slope, difference, rtol=1e-8, atol=1e-9)


@every_row
def test_finite_at_huge_margins(case):
    # Of either sign in most rows: labels have nothing to do with weights.
    size = abs(np.asarray(case.ascent.margins)).max()
    params = scaled((1e4 / size) ** (1 / case.network.degree), case.params)
    delta, ascent = case.observe(params)
    np.testing.assert_allclose(abs(np.asarray(ascent.margins)).max(), 1e4, rtol=1e-12)
    total = log_loss(case.loss, np.asarray(ascent.margins))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((delta, ascent, total)))


@pytest.mark.parametrize(
    columns,
    [row for row in TABLE if row.values[0] in LINEAR and row.values[1] in EXACT_ON_LINEAR],
)
def test_margins_of_linear_networks(case):
    predictor = np.asarray(case.network.predictor(jax.tree.map(jnp.asarray, case.params)))
    order, radius = case.perturbation.order, float(case.perturbation.radius)
    dual = np.inf if order == 1 else 1 / (1 - 1 / order)
    expected = BINARY.y * (X @ predictor) - radius * lp_norm(predictor, dual)
    np.testing.assert_allclose(case.ascent.margins, expected, rtol=0, atol=1e-14)


# What a class says of itself, and would be believed of it in silence

TURNS = np.linspace(0, np.pi, 2049)


def jumps(values):
    """Whether a function jumps: at half the distance a smooth one changes half as much."""
    fine, coarse = (np.abs(np.diff(values[::every], axis=0)).max() for every in (1, 2))
    return coarse < 1.5 * fine


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_shapes_are_those_of_the_start(name):
    network = NETWORKS[name]()
    if isinstance(network, Custom):
        assert network.parameter_shapes is None
        return
    start = jax.tree.leaves(jax.eval_shape(network.init, 0))
    assert network.parameter_shapes == [leaf.shape for leaf in start], (
        "Without `parameter_shapes` parameters of other shapes fail somewhere inside, or broadcast."
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_counts_its_kinks(name):
    """Half a turn of the parameters passes every kink."""
    network, generator = NETWORKS[name](), np.random.default_rng(3)
    first = parameters(name)
    second = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), first)
    x = jnp.asarray(X[0])

    def output(turn):
        turned = jax.tree.map(lambda a, b: jnp.cos(turn) * a + jnp.sin(turn) * b, first, second)
        return network.apply(turned, x)

    slopes = jax.jit(jax.vmap(jax.jacfwd(output)))(TURNS)
    assert (network.num_switches > 0) == jumps(slopes), (
        "A network with kinks has `num_switches`, `switched` and `smoothed`; otherwise "
        "`find_limit` takes it for smooth."
    )


# Of a projection onto a ball the kinks have no switches.
@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if not name.startswith("pgd")])
def test_a_perturbation_counts_its_kinks(name):
    """Half a turn of the margin's gradient passes every sign, and other coordinates are largest."""
    perturbation, x = PERTURBATIONS[name](RADIUS), jnp.asarray(X[0])
    first, second = jnp.asarray([[0.3, -1.2, 0.7], [1.1, 0.4, 0.9]])

    def delta(turn):
        weights = jnp.cos(turn) * first + jnp.sin(turn) * second
        return perturbation(lambda x: weights @ x, x, None)

    values, slopes = jax.jit(jax.vmap(lambda turn: jax.jvp(delta, (turn,), (1.0,))))(TURNS)
    assert (perturbation.num_switches(x.size) > 0) == (jumps(values) or jumps(slopes)), (
        "A step with kinks has `num_switches`, `switched` and `smoothed`; otherwise `find_limit` "
        "takes it for smooth."
    )


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_with_its_switches_turned_a_perturbation_is_itself(name):
    perturbation, x = PERTURBATIONS[name](RADIUS), jnp.asarray(X[0])
    weights = jnp.asarray([0.3, -1.2, 0.7])
    starts = perturbation.starts(1, x.size)
    start = None if starts is None else jnp.asarray(starts[0])
    size = perturbation.num_gradients, perturbation.num_switches(x.size)

    def margin(x):
        return weights @ x + jnp.prod(x)

    def switched(x, angles):
        return margin(x), Decided(angles, angles)

    @jax.jit
    def turned(angles):
        none = jnp.zeros((size[0], 0))
        delta, _, (values, _) = perturbation.switched(switched, x, start, none, angles, 0.0)
        return delta, jnp.sign(values) * np.pi / 2

    assert perturbation.has_named_kinks, (
        "Without `switched` limits at kinks of the network are not found under this perturbation."
    )
    angles = jnp.zeros(size)
    for _ in range(1 + angles.size):  # each depends on those before it alone
        delta, angles = turned(angles)
    expected = perturbation(margin, x, start)
    np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-14)
    assert bool(expected.any()) == (size[0] > 0), (
        "`num_gradients` says how many gradients of the margin the perturbation takes."
    )
