"""Laws that every network obeys: a new network is one more row.

What a row needs comes from one compiled function, called at several parameters.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _network_rows import ROWS
from _oracles import central_difference

NUM_EXAMPLES = 3
SMOOTHED = [name for name in ROWS if "smoothed" in name]

num_traces = 0


@eqx.filter_jit
def observe(network, params, tangent, x, cotangent):
    """All that the laws ask for, at one point.

    Each output is weighed by `cotangent`, so that there is one function to differentiate.
    """
    global num_traces
    num_traces += 1
    outputs = jax.vmap(network.apply, (None, 0))(params, x)

    def weighed(params, x):
        return jnp.sum(cotangent * network.apply(params, x))

    def total(params):
        return jnp.sum(jax.vmap(weighed, (None, 0))(params, x))

    gradient, curvature = jax.jvp(jax.grad(total), (params,), (tangent,))
    return {
        "outputs": outputs,
        "gradients": jax.vmap(jax.grad(weighed), (None, 0))(params, x),
        "gradient": gradient,
        "curvature": curvature,
    }


class Case:
    """A row, and what was observed at its own point."""

    def __init__(self, name):
        self.row = ROWS[name]
        self.network = self.row.make()
        generator = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: self.network.init(0))
        self.params = self.normal_like(shapes, generator)
        self.tangent = self.normal_like(self.params, generator)
        num_inputs = self.network.num_inputs or 4
        self.x = generator.normal(size=(NUM_EXAMPLES, num_inputs))
        outputs = jax.eval_shape(lambda p, x: self.network.apply(p, x), self.params, self.x[0])
        self.cotangent = generator.normal(size=outputs.shape)
        self.here = self.observe(self.params)

    @staticmethod
    def normal_like(shapes, generator):
        return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), shapes)

    def observe(self, params, network=None, x=None):
        network = self.network if network is None else network
        x = self.x if x is None else x
        seen = observe(network, params, self.tangent, x, self.cotangent)
        return jax.tree.map(np.asarray, seen)

    def at(self, step):
        """Observed a step along the tangent."""
        return self.observe(jax.tree.map(lambda p, t: p + step * t, self.params, self.tangent))

    def weighed(self, outputs):
        return np.sum((outputs * self.cotangent).reshape(NUM_EXAMPLES, -1), axis=1)


@functools.cache
def case_of(name):
    return Case(name)


@pytest.fixture(params=ROWS)
def case(request):
    return case_of(request.param)


def dot(left, right):
    return flat(left) @ flat(right)


def scaled(params, factor):
    return jax.tree.map(lambda leaf: factor * leaf, params)


def assert_close(found, expected, relative):
    """Every leaf within `relative` of the largest entry anywhere."""
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(expected)]
    size = max(np.max(np.abs(leaf)) for leaf in leaves)
    assert size > 0, "nothing was compared"
    for leaf, other in zip(jax.tree.leaves(found), leaves, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=relative * size)


# Rounding of sums of at most 100 terms in at most 5 layers, whose powers multiply it by the degree.
ROUNDING = 1e-12


def test_outputs_are_those_of_plain_numpy(case):
    expected = np.stack([case.row.oracle(case.params, x) for x in case.x])
    assert_close(case.here["outputs"].reshape(expected.shape), expected, ROUNDING)
    assert np.all(expected != 0)  # or little was compared


def test_one_output_is_a_scalar(case):
    outputs = case.network.num_outputs or 1
    expected = (NUM_EXAMPLES,) if outputs == 1 else (NUM_EXAMPLES, outputs)
    assert case.here["outputs"].shape == expected


def test_compiled_and_mapped_as_plain_and_alone(case):
    params, x = jax.tree.map(jnp.asarray, (case.params, case.x))
    alone = [case.network.apply(params, x[i]) for i in range(2)]
    assert_close(case.here["outputs"][:2], np.stack(alone), ROUNDING)


def test_gradients_of_the_examples_sum_to_the_gradient_of_their_sum(case):
    expected = jax.tree.map(lambda leaf: leaf.sum(axis=0), case.here["gradients"])
    assert_close(case.here["gradient"], expected, ROUNDING)


def test_everything_is_double(case):
    initial = jax.eval_shape(lambda: case.network.init(0))
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((case.here, initial)))


def test_degree(case):
    assert case.network.degree == case.row.degree


@pytest.mark.parametrize("factor", [1e-3, 0.7, 40.0, 1e3])
def test_homogeneity(case, factor):
    there = case.observe(scaled(case.params, factor))
    degree = case.row.degree
    assert_close(there["outputs"], factor**degree * case.here["outputs"], ROUNDING)
    expected = scaled(case.here["gradient"], factor ** (degree - 1))
    assert_close(there["gradient"], expected, ROUNDING)


def test_euler_identity(case):
    products = sum(
        np.sum((leaf * param).reshape(NUM_EXAMPLES, -1), axis=1)
        for leaf, param in zip(
            jax.tree.leaves(case.here["gradients"]), jax.tree.leaves(case.params), strict=True
        )
    )
    assert_close(products, case.row.degree * case.weighed(case.here["outputs"]), ROUNDING)
    # Once more for the gradient, which is homogeneous of degree L - 1, by symmetry of the Hessian.
    slope = dot(case.here["gradient"], case.tangent)
    found, expected = dot(case.here["curvature"], case.params), (case.row.degree - 1) * slope
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * curvature_scale(case))


def curvature_scale(case):
    """Sum of the magnitudes that cancel in `<H t, params>`."""
    return dot(
        *(jax.tree.map(np.abs, tree) for tree in (case.here["curvature"], case.params))
    ) + dot(*(jax.tree.map(np.abs, tree) for tree in (case.here["gradient"], case.tangent)))


def test_derivatives_are_those_of_finite_differences(case):
    # Rounding error eps / step, and step^4 times a fifth derivative, which smoothing makes large.
    step, tolerance = 1e-4, 1e-9
    slope = central_difference(lambda s: case.weighed(case.at(s)["outputs"]).sum(), 0.0, 1.0, step)
    assert_close(dot(case.here["gradient"], case.tangent), slope, tolerance)

    bent = central_difference(lambda s: flat(case.at(s)["gradient"]), 0.0, 1.0, step)
    size = max(np.max(np.abs(bent)), np.max(np.abs(flat(case.here["gradient"]))))
    curvature = flat(case.here["curvature"])
    np.testing.assert_allclose(curvature, bent, rtol=0, atol=tolerance * size)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_finite_at_zero_inputs_and_zero_parameters(case):
    without_first = list(jax.tree.leaves(case.params))
    without_first[0] = np.zeros_like(without_first[0])
    structure = jax.tree.structure(case.params)
    for params, x in (
        (case.params, np.zeros_like(case.x)),
        (scaled(case.params, 0.0), case.x),
        (structure.unflatten(without_first), case.x),
    ):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(case.observe(params, x=x)))


def test_rebuilt_networks_are_equal_and_not_traced_again(case):
    before = num_traces
    rebuilt = case.row.make()
    assert rebuilt == case.network
    again = case.observe(case.params, rebuilt)
    assert num_traces == before
    np.testing.assert_array_equal(again["outputs"], case.here["outputs"])


@pytest.mark.parametrize("name", SMOOTHED)
def test_smoothing_is_swept_without_tracing_again(name):
    case, before = case_of(name), num_traces
    other = case.row.make(smoothing=0.3)
    swept = case.observe(case.params, other)
    assert num_traces == before
    oracle = functools.partial(case.row.oracle, smoothing=0.3)
    expected = np.stack([oracle(case.params, x) for x in case.x])
    assert_close(swept["outputs"].reshape(expected.shape), expected, ROUNDING)
    assert other != case.network


@pytest.mark.parametrize("smoothing", [0.1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize(
    ("plain", "smoothed", "overlap"), [("mlp", "mlp_smoothed", 1), ("conv", "conv_smoothed", 3)]
)
def test_smoothed_relu_tends_to_relu(plain, smoothed, overlap, smoothing):
    """`|h' - h|` after l layers is at most `|W_1| .. |W_l| |x| ((1 + mu/2)^l - 1)`, and so on.

    By induction: the activation rises by at most half its width and is 1-Lipschitz. Each pixel lies
    in at most `overlap^2` windows.
    """
    case, other = case_of(plain), case_of(smoothed)
    near = other.observe(case.params, other.row.make(smoothing=smoothing), case.x)
    errors = np.abs(near["outputs"] - case.here["outputs"])
    lengths = np.prod([np.linalg.norm(leaf) for leaf in case.params])
    growth = (1 + smoothing / 2) ** (len(case.params) - 1) - 1
    assert np.all(errors <= overlap * lengths * growth * np.linalg.norm(case.x, axis=1))
    assert np.all(errors > 0)
