"""A run that slides along kinks says so."""

import jax
import numpy as np
import pytest

import gflow
from gflow import Until, losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.chattering import POINTS, num_chattering
from gflow.flow.field import Field
from gflow.flow.jumps import examples_at, jumps
from gflow.flow.starting import initial_state
from gflow.reference import largest_feasible_radius

DATA = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
LINEAR = networks.linear(5)


def run(attack, until=None):
    trained = gflow.Problem(LINEAR, DATA, loss=losses.exponential(), perturbation=attack)
    until = gflow.Until(log_kappa=6.0) if until is None else until
    return gflow.integrate(trained, LINEAR.init(0), until=until, max_steps=700, throw=False)


def test_signs_without_smoothing_chatter():
    flow = run(perturbations.fgsm(0.365))
    assert flow.result_name == "chattering"
    # A weight that is about to be 0 is so for all examples.
    assert flow.stats["num_chattering"] == len(DATA.x)
    assert "chattering examples: 40" in repr(flow)
    assert "find_limit" in flow.message


@pytest.mark.parametrize(
    "attack", [perturbations.fgm(0.1), perturbations.fgsm(0.1, smoothing=0.1)], ids=["l2", "smooth"]
)
def test_smooth_problems_do_not(attack):
    flow = run(attack, gflow.Until(log_kappa=1.0))
    assert flow.stats["num_chattering"] == 0
    assert "chattering" not in repr(flow)


def test_kinks_that_are_crossed_or_far_do_not_count():
    trained = gflow.Problem(
        LINEAR, DATA, loss=losses.exponential(), perturbation=perturbations.fgsm(0.1)
    )
    layout = Layout.of(jax.tree.map(np.asarray, LINEAR.init(0)))
    line = np.linspace(-1.0, 1.0, POINTS)[:, None] * np.eye(5)[0] + np.eye(5)[1:].sum(axis=0)
    assert num_chattering(trained, layout, line) == 0
    # To and fro at some distance, and close by on one side.
    zigzag = line.copy()
    zigzag[:, 0] = 0.1 * (-1.0) ** np.arange(POINTS)
    assert num_chattering(trained, layout, zigzag) == len(DATA.x)
    zigzag[:, 0] = 1e-5
    assert num_chattering(trained, layout, zigzag) == len(DATA.x)


def stopped(flow):
    """Whether a run was stopped for chattering long before its 100 000 steps."""
    assert "find_limit" in flow.message
    return flow.result_name == "chattering" and 1000 < flow.stats["num_steps"] < 6000


@pytest.mark.slow
@pytest.mark.parametrize("attack", [perturbations.clean(), perturbations.fgm(0.05)], ids=str)
def test_plain_relus_that_slide_are_stopped(attack):
    net = networks.mlp((10, 16, 1))
    for seed in range(3):
        data = gflow.datasets.random_labels(24, 10, seed=seed)
        trained = gflow.Problem(net, data, loss=losses.logistic(), perturbation=attack)
        flow = gflow.integrate(trained, net.init(seed), until=Until(log_loss=-3.0), throw=False)
        assert stopped(flow), flow
        assert 0 < flow.stats["num_chattering"] <= 24


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [600, 100_000])
def test_signs_at_half_the_feasible_radius_do_not_blame_the_radius(max_steps):
    data = gflow.datasets.gaussian(8, 6, gap=0.8, seed=2)
    radius = 0.5 * largest_feasible_radius(data, order=np.inf)
    for depth in ((6, 1), (6, 4, 1)):
        net = networks.deep_linear(depth)
        attack = perturbations.fgsm(radius)
        trained = gflow.Problem(net, data, loss=losses.logistic(), perturbation=attack)
        options = {"tolerance": 1e-9, "max_steps": max_steps, "throw": False}
        until = Until(log_kappa=np.log(1e4))
        flow = gflow.integrate(trained, net.init(1, scale=0.6), until=until, **options)
        assert flow.result_name in ("chattering", "step_budget_spent"), flow
        assert flow.stats["num_steps"] < 6000


# A total gradient jumps where a neuron of ReLU^2 switches at an example: delta follows the slope.
SQUARED = networks.mlp((2, 4, 1), power=2)
POINTS_X = np.array(
    [
        [0.34558419, 0.82161814],
        [0.33043708, -1.30315723],
        [0.90535587, 0.44637457],
        [-0.53695324, 0.5811181],
    ]
)
START = (
    np.array(
        [
            [-4.84635028, -6.08389131],
            [4.55460525, 3.91982152],
            [-4.44872648, -4.06935745],
            [-1.23673564, 2.13006504],
        ]
    ),
    np.array([[-6.57375152, 2.5430171, -4.78298611, -2.61163798]]),
)


def squared(gradient):
    data = gflow.Dataset(POINTS_X, [1, -1, 1, -1])
    attack = perturbations.fgm(0.3)
    return gflow.Problem(
        SQUARED, data, loss=losses.exponential(), perturbation=attack, gradient=gradient
    )


@pytest.mark.slow
def test_the_total_gradient_jumps_at_a_switch_that_nothing_names():
    flow = gflow.integrate(squared("total"), START, until=Until(log_loss=-10.0), throw=False)
    assert stopped(flow)
    assert flow.stats["num_chattering"] == 1
    # It sticks to where neuron 2 switches at example 3, the only pair so close.
    places = np.abs(POINTS_X @ np.asarray(flow.params[0]).T)
    assert np.unravel_index(places.argmin(), places.shape) == (3, 2)
    assert places.min() < 1e-4 < np.sort(places.ravel())[1]


@pytest.mark.parametrize("gradient", ["total", "frozen"])
def test_jumps_of_the_field_and_none_of_a_smooth_one(gradient):
    field = Field(squared(gradient), Layout.of(START))
    first = START[0][:3]
    # From one side of the switch to the other, by a lot and by little; and on one side.
    ends = []
    for low, high in ((-0.1, 0.1), (-1e-7, 3e-7), (0.05, 0.1), (1e-9, 2e-9)):
        for place in (low, high):
            neuron = START[0][2]
            moved = neuron + (place - neuron @ POINTS_X[3]) * POINTS_X[3] / (
                POINTS_X[3] @ POINTS_X[3]
            )
            weights = np.stack([*first[:2], moved, START[0][3]])
            ends.append(np.asarray(initial_state(field.layout, (weights, START[1]))))
    found = jumps(field, np.stack(ends[::2]), np.stack(ends[1::2]))
    crossing = np.array([True, True, False, False])
    np.testing.assert_array_equal(found.found, crossing & (gradient == "total"))
    at = np.asarray(examples_at(field, found))
    np.testing.assert_array_equal(at, (gradient == "total") & (np.arange(4) == 3))


def test_a_stiff_smooth_field_does_not_jump():
    # Weights p that change over 1e-6, and signs rounded over 1e-4.
    attack = perturbations.fgsm(0.1, smoothing=1e-4)
    trained = gflow.Problem(LINEAR, DATA, loss=losses.exponential(), perturbation=attack)
    generator = np.random.default_rng(0)
    starts, ends = generator.normal(size=(2, 20, 5))
    params = [(1e6 * row[None],) for row in np.concatenate([starts, ends])]
    field = Field(trained, Layout.of(params[0]))
    states = np.stack([np.asarray(initial_state(field.layout, each)) for each in params])
    assert not jumps(field, states[:20], states[20:]).found.any()
    exact = perturbations.fgsm(0.1)
    trained = gflow.Problem(LINEAR, DATA, loss=losses.exponential(), perturbation=exact)
    # One sign turns between points so close that the weights p hardly change.
    sides = np.where(np.arange(states.shape[1]) == 2, 1e-9, 0.0)
    at_kink = states[:20] * (np.arange(states.shape[1]) != 2)
    found = jumps(Field(trained, field.layout), at_kink - sides, at_kink + sides).found
    assert np.asarray(found).all()


def test_kinks_that_are_crossed_now_and_then_do_not_stop_a_run():
    data = gflow.datasets.gaussian(20, 5, gap=0.5, seed=1)
    net = networks.deep_linear((5, 4, 1))
    trained = gflow.Problem(
        net, data, loss=losses.logistic(), perturbation=perturbations.fgsm(0.02)
    )
    flow = gflow.integrate(trained, net.init(1), until=Until(log_loss=-3.0))
    signs = np.sign(
        [np.ravel(each[1] @ each[0]) for each in map(flow.params_at_index, range(len(flow)))]
    )
    assert np.any(signs[1:] != signs[:-1])
