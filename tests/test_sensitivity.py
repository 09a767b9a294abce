"""How a limit moves: the implicit function theorem against limits solved again."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.limit.polish import polish

DATA = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
NETWORK = networks.mlp((5, 8, 1), power=2)


@pytest.fixture(scope="module", params=["frozen", "total"])
def limit(request):
    problem = gflow.Problem(
        NETWORK,
        DATA,
        loss=losses.logistic(),
        perturbation=perturbations.fgm(0.1),
        gradient=request.param,
    )
    return gflow.find_limit(problem, NETWORK.init(0))


def solved_again(limit, problem):
    """The direction of the KKT point of another problem, near that of this one."""
    layout = Layout.of(limit.direction)
    found = polish(problem, layout, limit.polished.direction, limit.polished.multipliers)
    assert found.converged
    np.testing.assert_array_equal(found.active, limit.polished.active)
    return found.direction


def difference(limit, problem_at, step):
    """Central difference of re-solved directions."""
    ends = [solved_again(limit, problem_at(sign * step)) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in params])


def test_radius_moves_the_limit_as_the_theorem_says(limit):
    problem = limit.trajectory.require_problem()
    total = problem.gradient_mode == "total"
    assert limit.verdict == ("strict maximum" if total else "stable rest point")

    def at(shift):
        return eqx.tree_at(lambda p: p.perturbation.radius, problem, jnp.asarray(0.1 + shift))

    expected = difference(limit, at, 1e-5)
    assert np.linalg.norm(expected) > 1e-3
    # The square of the step, 1e-10, times third derivatives; and 1e-15 / 1e-5 of rounding.
    found = flat(gflow.radius_sensitivity(limit))
    np.testing.assert_allclose(found, expected, atol=1e-7 * np.linalg.norm(expected))


def test_data_move_the_limit_as_the_theorem_says(limit):
    problem = limit.trajectory.require_problem()
    change = np.random.default_rng(0).normal(size=DATA.x.shape)

    def at(shift):
        return eqx.tree_at(lambda p: p.dataset.x, problem, jnp.asarray(DATA.x + shift * change))

    expected = difference(limit, at, 1e-6)
    found = flat(gflow.data_sensitivity(limit, change))
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.linalg.norm(expected))
    # Examples that are not active do not matter.
    idle = change * ~limit.polished.active[:, None]
    assert np.linalg.norm(flat(gflow.data_sensitivity(limit, idle))) < 1e-12


def test_what_cannot_move_in_one_way_is_refused(limit):
    with pytest.raises(ValueError, match="shape"):
        gflow.data_sensitivity(limit, np.zeros((3, 5)))
    deep = networks.deep_linear((5, 4, 1))
    problem = gflow.Problem(deep, DATA, loss=losses.logistic())
    family = gflow.find_limit(problem, deep.init(0))
    with pytest.raises(ValueError, match="maximum within a family"):
        gflow.radius_sensitivity(family)


def test_a_limit_without_an_attack_has_no_radius(limit):
    clean = gflow.Problem(NETWORK, DATA, loss=losses.logistic())
    with pytest.raises(ValueError, match="the perturbation has no radius to differentiate by"):
        gflow.radius_sensitivity(dataclasses.replace(limit, problem=clean))


def test_a_change_must_be_of_numbers_that_are_known(limit):
    with pytest.raises(ValueError, match="masked entries"):
        gflow.data_sensitivity(limit, np.ma.masked_less(np.ones(DATA.x.shape), 2))
