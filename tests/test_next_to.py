"""The margin that an attack leaves at a direction on kinks or next to it, by walking there."""

import functools
import itertools

import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow.kkt.margin_next_to import margin_next_to
from gflow.kkt.switches import passes

# How far from the direction margins are read, and how much they may change on the way.
STEP, CHANGE = 1e-7, 2e-6
ATTACKS = {"FGM": perturbations.fgm(0.3), "FGSM": perturbations.fgsm(0.2)}
DATA = {
    "in general position": lambda x: x,
    "an example twice": lambda x: np.vstack([x[:1], x[:1], x[2:]]),
    "mirrored": lambda x: np.vstack([x[:1], -2 * x[:1], x[2:]]),
}


def on_kinks(generator, x):
    """A direction of a net of two neurons, each with examples of the set on its kink."""
    weight = generator.normal(size=(2, 3))
    for neuron in range(2):
        on = x[neuron] / np.linalg.norm(x[neuron])
        weight[neuron] -= (weight[neuron] @ on) * on
    head = generator.normal(size=(1, 2))
    length = np.sqrt((weight**2).sum() + (head**2).sum())
    return weight / length, head / length


def walked(problem, direction, generator):
    """The largest of the smallest margins a step away, on all sides."""
    margins = [np.min(problem.margins(direction))]
    for _ in range(60):
        moved = tuple(leaf + STEP * generator.normal(size=leaf.shape) for leaf in direction)
        margins.append(np.min(problem.margins(moved)))
    return float(max(margins))


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_the_largest_on_the_sides_that_there_are(attack, kind):
    network, generator, jumps = networks.mlp((3, 2, 1)), np.random.default_rng(0), 0
    for _ in range(12):
        x = DATA[kind](generator.normal(size=(4, 3)))
        data = gflow.Dataset(x, np.where(generator.random(4) < 0.5, -1, 1))
        problem = gflow.Problem(
            network, data, loss=losses.exponential(), perturbation=ATTACKS[attack]
        )
        direction = on_kinks(generator, x)
        middle = np.zeros((4, passes(problem).size))
        expected = walked(problem, direction, generator)
        found = margin_next_to(problem, direction, middle).margin
        assert found == pytest.approx(expected, abs=CHANGE)
        jumps += abs(float(np.min(problem.margins(direction))) - found) > 100 * CHANGE
    assert jumps > 0


def test_a_side_that_no_step_leads_to_does_not_count():
    # Two mirrored examples on one neuron's kink: what turns it on for one turns it off for the
    # other. Each would be best with it off, so one of them always has the smaller margin.
    weight, head = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.5, 1.0]])
    x = np.array([[1.0, 0.0], [-1.0, 0.0]])

    network = networks.mlp((2, 2, 1))
    problem = gflow.Problem(
        network,
        gflow.Dataset(x, [1, -1]),
        loss=losses.exponential(),
        perturbation=perturbations.fgm(0.4),
    )
    direction = (weight, head)
    middle = np.zeros((2, passes(problem).size))
    generator = np.random.default_rng(0)
    expected = walked(problem, direction, generator)
    assert margin_next_to(problem, direction, middle).margin == pytest.approx(expected, abs=CHANGE)


def test_where_the_attack_does_not_jump_it_is_the_margin_there():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, 3))
    data = gflow.Dataset(x, [1, -1, 1, -1])
    for network, attack in (
        (networks.mlp((3, 2, 1)), perturbations.clean()),
        (networks.mlp((3, 2, 1), power=2), perturbations.fgm(0.3)),
        (networks.diagonal(3, 2), perturbations.fgsm(0.3)),
    ):
        problem = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
        direction = on_kinks(generator, x)
        if isinstance(network, type(networks.diagonal(3, 2))):
            direction = np.array([0.8, 0.0, 0.2]), np.array([0.0, 0.0, 0.5])
        middle = np.zeros((4, passes(problem).size))
        expected = float(np.min(problem.margins(direction)))
        found = margin_next_to(problem, direction, middle)
        assert found.margin == pytest.approx(expected, rel=1e-12)
        assert not found.sampled


def test_of_more_than_ten_switches_some_sides_are_tried_and_it_says_so():
    generator = np.random.default_rng(0)
    x, network = generator.normal(size=(2, 3)), networks.mlp((3, 11, 1))
    data, attack = gflow.Dataset(x, [1, -1]), perturbations.fgm(0.3)
    problem = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
    weight = generator.normal(size=(11, 3))
    weight -= np.outer(weight @ x[0], x[0]) / (x[0] @ x[0])
    direction = weight, generator.normal(size=(1, 11))
    found = margin_next_to(problem, direction, np.zeros((2, passes(problem).size)))
    assert found.sampled
    # It is not below what some steps to random sides find.
    assert found.margin >= walked(problem, direction, generator) - CHANGE


@functools.cache
def attacked_limit(seed):
    """A limit of plain ReLUs under FGM."""
    generator = np.random.default_rng(1000 + seed)
    x, y = generator.normal(size=(12, 4)), np.where(generator.random(12) < 0.5, -1.0, 1.0)
    network = networks.mlp((4, 8, 1))
    problem = gflow.Problem(
        network,
        gflow.Dataset(x, y),
        loss=losses.exponential(),
        perturbation=perturbations.fgm(0.15),
    )
    return gflow.find_limit(problem, network.init(seed + 500), throw=False)


def largest_by_example(limit, radius):
    """`min_i max` over all ways to turn the neurons at kinks on and off, example by example."""
    weight, head = (np.asarray(leaf) for leaf in limit.direction)
    data, head = limit.problem.dataset, head[0]
    best = []
    for x, y in zip(data.x, data.y, strict=True):
        value = weight @ x
        scale = np.linalg.norm(weight, axis=1) * np.linalg.norm(x)
        ways = [
            (0, 1) if abs(v) <= 1e-9 * s else (v > 0,) for v, s in zip(value, scale, strict=True)
        ]
        margins = []
        for on in itertools.product(*ways):
            slope = (head * on) @ weight
            point = x - radius * y * slope / max(np.linalg.norm(slope), 1e-300)
            margins.append(y * head @ np.maximum(weight @ point, 0))
        best.append(max(margins))
    return min(best)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_limits_at_kinks_tell_both_margins(seed):
    limit = attacked_limit(seed)
    assert limit.successful and limit.kinks is not None and limit.kinks.at_kink.any()
    length = np.linalg.norm(limit.kinks.theta)
    assert limit.held_margin == pytest.approx(length**-2, rel=1e-9)
    assert limit.held_margin == limit.certificate.held_margin
    assert limit.margin == pytest.approx(largest_by_example(limit, 0.15), rel=1e-9)
    # The two are computed by different formulas, which round differently.
    assert limit.certificate.normalized_margin <= (1 + 1e-12) * limit.margin
    assert limit.margin < (1 - 1e-2) * limit.held_margin
    for name in ("margin", "held_margin"):
        assert f"{name}={getattr(limit, name):.6g}" in repr(limit)
        assert limit.to_dict()[name] == getattr(limit, name)
