"""Making networks and their initial parameters: statistics, keys, and refused arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _network_oracles import deep_linear

from gflow import networks
from gflow.networks import AveragePool, Convolution, Dense, MaxPool

IMAGE = (1, 4, 4)


pytestmark = pytest.mark.usefixtures("own_words")


@pytest.mark.parametrize(
    ("network", "fan_ins"),
    [
        (networks.mlp((30, 50, 40, 20)), (30, 50, 40)),
        (networks.mlp((30, 50, 20), bias=True), (31, 50)),
        (networks.deep_linear((30, 50, 20)), (30, 50)),
        (
            networks.conv((8, 6, 6), [Convolution(20, 5), MaxPool(2), Dense(20), Dense(30)]),
            (200, 180, 20),
        ),
    ],
    ids=["mlp", "mlp_bias", "deep_linear", "conv"],
)
def test_initial_weights_are_normal_of_the_right_size(network, fan_ins):
    scale = 3.0
    params = network.init(0, scale=scale)
    standard = np.concatenate(
        [np.ravel(w) * np.sqrt(f) / scale for w, f in zip(params, fan_ins, strict=True)]
    )
    for weight, fan_in in zip(params, fan_ins, strict=True):
        assert np.prod(weight.shape[1:]) == fan_in
        # Standard errors of a deviation and of a mean, four of each.
        entries = np.ravel(weight) * np.sqrt(fan_in) / scale
        assert abs(np.std(entries) - 1) < 4 / np.sqrt(2 * entries.size)
        assert abs(np.mean(entries)) < 4 / np.sqrt(entries.size)
    assert len(np.unique(standard)) == standard.size  # no key is used twice
    # The fourth moment of a normal variable is 3, of variance 96.
    assert abs(np.mean(standard**4) - 3) < 4 * np.sqrt(96 / standard.size)


def test_the_diagonal_network_starts_at_the_zero_function():
    network = networks.diagonal(3, 2)
    u, v = network.init(0, scale=0.1)
    np.testing.assert_array_equal(u, [0.1, 0.1, 0.1])
    np.testing.assert_array_equal(u, v)
    assert network.apply((u, v), jnp.ones(3)) == 0


NETWORK = networks.deep_linear((3, 2, 1))


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_keys_of_every_kind():
    expected = NETWORK.init(5)
    keys = (
        jax.random.key(5),
        jax.random.PRNGKey(5),
        np.asarray(jax.random.PRNGKey(5)),
        np.int32(5),
        np.array(5),
        jnp.asarray(5),
    )
    for key in keys:
        assert_equal(NETWORK.init(key), expected)
    assert not np.array_equal(NETWORK.init(6)[0], expected[0])
    NETWORK.init(-1), NETWORK.init(2**63 - 1)


def test_scale_is_a_factor():
    np.testing.assert_array_equal(NETWORK.init(5, scale=4)[0], 4 * NETWORK.init(5)[0])


def test_many_starts_at_once():
    keys = jax.random.split(jax.random.key(0), 3)
    scales = jnp.array([0.5, 1.0, 2.0])
    many = jax.vmap(lambda key, scale: NETWORK.init(key, scale=scale))(keys, scales)
    for i in range(3):
        one = NETWORK.init(keys[i], scale=scales[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-15), many, one)


def test_seeds_and_scales_compile_nothing_again():
    num_traces = 0

    def initial(key):
        nonlocal num_traces
        num_traces += 1
        return jax.random.normal(key, (2,))

    network = networks.custom(lambda params, x: params @ x, degree=1, init=initial)
    first, second = network.init(0), network.init(1, scale=2)
    assert num_traces == 1
    assert not np.array_equal(first, second)
    assert_equal(second, 2 * np.asarray(network.init(1)))


def test_custom_parameters_of_every_kind_become_double():
    def initial(key):
        return {"a": np.arange(2, dtype=np.int32), "b": jnp.ones((), np.float32), "c": 3}

    params = networks.custom(lambda p, x: x, degree=1, init=initial).init(0, scale=0.5)
    assert {name: leaf.dtype for name, leaf in params.items()} == dict.fromkeys("abc", np.float64)
    assert_equal(params, {"a": np.array([0.0, 0.5]), "b": 0.5, "c": 1.5})


def test_predictors():
    generator = np.random.default_rng(0)
    basis = np.eye(4)
    for network in (NETWORK, networks.deep_linear((4, 3, 2)), networks.linear(4)):
        params = tuple(generator.normal(size=w.shape) for w in network.init(0))
        columns = [
            deep_linear(params, e) for e in basis[: network.num_inputs, : network.num_inputs]
        ]
        expected = np.squeeze(np.array(columns).T)
        np.testing.assert_allclose(network.predictor(params), expected, atol=1e-14)
    u, v = generator.normal(size=(2, 4))
    expected = u * u * u - v * v * v
    np.testing.assert_allclose(networks.diagonal(4, 3).predictor((u, v)), expected, atol=1e-15)


def test_numbers_are_equal_however_they_are_written():
    assert networks.mlp([3, np.int64(2), 1], power=2.0) == networks.mlp((3, 2, 1), power=2)
    assert type(networks.mlp((3, 2, 1), power=np.float64(2)).power) is int
    assert networks.mlp((3, 2, 1), smoothing=0) == networks.mlp((3, 2, 1))
    assert networks.mlp((3, 2, 1), smoothing=0.1) != networks.mlp((3, 2, 1))
    assert Convolution(3, 2, stride=1) == Convolution(3, (2, 2)) != Convolution(3, (2, 1))
    assert MaxPool(2) == MaxPool(2, stride=(2, 2)) != AveragePool(2)
    assert networks.diagonal(np.int64(3), np.int32(2)) == networks.diagonal(3, 2)
    assert networks.linear(3) == networks.deep_linear((3, 1))


def conv(*layers, **options):
    return networks.conv(IMAGE, list(layers), **options)


class Callables(list):
    """A function that cannot be hashed."""

    def __call__(self, params, x):
        return x


REFUSED = [
    (TypeError, "`mlp(5)`", lambda: networks.mlp(5)),
    (ValueError, "`mlp((5,))`", lambda: networks.mlp((5,))),
    (ValueError, "`mlp((5, 0, 1))`", lambda: networks.mlp((5, 0, 1))),
    (TypeError, "`mlp((5, 2.5, 1))`", lambda: networks.mlp((5, 2.5, 1))),
    (TypeError, "`mlp((5, True, 1))`", lambda: networks.mlp((5, True, 1))),
    (TypeError, "`mlp('abc')`", lambda: networks.mlp("abc")),
    (ValueError, "`mlp(power=0.5)`", lambda: networks.mlp((3, 1), power=0.5)),
    (ValueError, "`mlp(power=nan)`", lambda: networks.mlp((3, 1), power=float("nan"))),
    (ValueError, "`mlp(power=inf)`", lambda: networks.mlp((3, 1), power=float("inf"))),
    (TypeError, "`mlp(power='2')`", lambda: networks.mlp((3, 1), power="2")),
    (TypeError, "`mlp(power=True)`", lambda: networks.mlp((3, 1), power=True)),
    (ValueError, "`smoothing=-1`", lambda: networks.mlp((3, 1), smoothing=-1)),
    (TypeError, "`smoothing='a'`", lambda: networks.mlp((3, 1), smoothing="a")),
    (ValueError, "`mlp(bias=1)`", lambda: networks.mlp((3, 1), bias=1)),
    (ValueError, "`mlp(bias='all')`", lambda: networks.mlp((3, 1), bias="all")),
    (ValueError, "`deep_linear((0, 1))`", lambda: networks.deep_linear((0, 1))),
    (ValueError, "`linear(0)`", lambda: networks.linear(0)),
    (TypeError, "`linear(2.0)`", lambda: networks.linear(2.0)),
    (ValueError, "`linear(2, num_outputs=0)`", lambda: networks.linear(2, num_outputs=0)),
    (ValueError, "`diagonal(d=2, depth=0)`", lambda: networks.diagonal(2, 0)),
    (TypeError, "`diagonal(d=2, depth=1.5)`", lambda: networks.diagonal(2, 1.5)),
    (TypeError, "`diagonal(d=2, depth=True)`", lambda: networks.diagonal(2, True)),
    (TypeError, "`custom(...)`", lambda: networks.custom(3, degree=1)),
    (TypeError, "`custom(...)`", lambda: networks.custom(abs, degree=1, init=3)),
    (TypeError, "`custom(...)`", lambda: networks.custom(Callables(), degree=1)),
    (TypeError, "`custom(degree='2')`", lambda: networks.custom(abs, degree="2")),
    (ValueError, "`custom(degree=0)`", lambda: networks.custom(abs, degree=0)),
    (ValueError, "`custom(degree=inf)`", lambda: networks.custom(abs, degree=float("inf"))),
    (ValueError, "`custom(num_inputs=0)`", lambda: networks.custom(abs, degree=1, num_inputs=0)),
    (
        ValueError,
        "`custom(num_outputs=1.5)`",
        lambda: networks.custom(abs, degree=1, num_outputs=1.5),
    ),
    (TypeError, "`custom(apply, degree=...)`", lambda: networks.custom(abs, degree=1).init(0)),
    (
        TypeError,
        "`custom(init=...)`",
        lambda: networks.custom(abs, degree=1, init=lambda key: ["w"]).init(0),
    ),
    (TypeError, "`Convolution(channels=1.5)`", lambda: Convolution(1.5, 3)),
    (ValueError, "`Convolution(channels=0)`", lambda: Convolution(0, 3)),
    (ValueError, "`Convolution(size=0)`", lambda: Convolution(2, 0)),
    (TypeError, "`Convolution(size=(1, 2, 3))`", lambda: Convolution(2, (1, 2, 3))),
    (ValueError, "`Convolution(stride=(1, 0))`", lambda: Convolution(2, 3, stride=(1, 0))),
    (ValueError, "`Convolution(padding='same')`", lambda: Convolution(2, 3, padding="same")),
    (ValueError, "`MaxPool(size=0)`", lambda: MaxPool(0)),
    (TypeError, "`AveragePool(stride='2')`", lambda: AveragePool(2, stride="2")),
    (ValueError, "`Dense(width=0)`", lambda: Dense(0)),
    (TypeError, "`Dense(width=None)`", lambda: Dense(None)),
    (TypeError, "`conv(input_shape=4)`", lambda: networks.conv(4, [Dense(1)])),
    (ValueError, "`conv(input_shape=(4, 4))`", lambda: networks.conv((4, 4), [Dense(1)])),
    (ValueError, "`conv(input_shape=(0, 4, 4))`", lambda: networks.conv((0, 4, 4), [Dense(1)])),
    (TypeError, "`conv(layers=Dense(width=1))`", lambda: networks.conv(IMAGE, Dense(1))),
    (ValueError, "`conv(power=0)`", lambda: conv(Dense(1), power=0)),
    (ValueError, "`smoothing=nan`", lambda: conv(Dense(1), smoothing=float("nan"))),
    (ValueError, "`conv(...)`: there is no Dense", lambda: conv()),
    (ValueError, "layer 0, `MaxPool(size=(2, 2)", lambda: conv(MaxPool(2))),
    (ValueError, "layer 1, `Convolution(", lambda: conv(Dense(3), Convolution(2, 3), Dense(1))),
    (ValueError, "layer 1, `AveragePool(", lambda: conv(Dense(3), AveragePool(1), Dense(1))),
    (ValueError, "layer 1, `MaxPool(", lambda: conv(MaxPool(2), MaxPool(3), Dense(1))),
    (
        ValueError,
        "layer 0, `Convolution(",
        lambda: conv(Convolution(2, 5, padding="VALID"), Dense(1)),
    ),
    (TypeError, "layer 0, `3`", lambda: conv(3, Dense(1))),
    (ValueError, "`init(scale=0)`", lambda: NETWORK.init(0, scale=0)),
    (ValueError, "`scale=-1`", lambda: NETWORK.init(0, scale=-1)),
    (ValueError, "`scale=inf`", lambda: NETWORK.init(0, scale=float("inf"))),
    (TypeError, "`scale=[1.0, 2.0]`", lambda: NETWORK.init(0, scale=[1.0, 2.0])),
    (TypeError, "`init(1.5)`", lambda: NETWORK.init(1.5)),
    (TypeError, "`init(None)`", lambda: NETWORK.init(None)),
    (TypeError, "`init(True)`", lambda: NETWORK.init(True)),
    (ValueError, f"`init({2**64})`", lambda: NETWORK.init(2**64)),
    (TypeError, "`init(Array(", lambda: NETWORK.init(jax.random.split(jax.random.key(0)))),
]


@pytest.mark.parametrize(("error", "words", "call"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refusals_name_the_call(error, words, call):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert words in str(caught.value)
