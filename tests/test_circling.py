"""Runs that circle are told from runs that rest, drift, or are thrown to and fro."""

from unittest.mock import Mock

import numpy as np
import pytest

from gflow.limit.approach import circles
from gflow.limit.circling import circling
from gflow.limit.search import Search
from gflow.limit.search_settings import DEFAULT
from gflow.limit.state import Start, begun
from gflow.results import RESULTS
from gflow.trajectory import Trajectory

POINTS = 400
TIME = np.linspace(0.0, 1.0, POINTS)


def run_of(offsets, *, growth=2.0):
    """A run of directions in 6 dimensions, about the first axis."""
    vectors = np.zeros((POINTS, 6))
    vectors[:, 0] = 1.0
    vectors[:, 1 : 1 + offsets.shape[1]] += offsets
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    margin = 0.1 + 0.01 * offsets[:, 0]
    return vectors, growth * TIME, margin


def circle(radius, turns):
    phase = 2 * np.pi * turns * TIME
    return np.stack([radius * np.cos(phase), radius * np.sin(phase)], axis=1)


@pytest.mark.parametrize("turns", [8, 20, 50])
@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e-1])
def test_a_circle_is_measured(size, turns):
    found = circling(*run_of(circle(size, turns)))
    assert found is not None
    assert found.radius == pytest.approx(size, rel=2e-2)
    # Two crossings a turn, over the last half, to a turn at each end.
    assert found.num_turns == pytest.approx(turns / 2, abs=1)
    assert found.log_growth == pytest.approx(1.0, rel=1e-2)
    # A chord is shorter than its arc.
    assert found.speed == pytest.approx(np.pi * size * turns, rel=5e-2)


def test_a_loop_that_is_no_plane_one_circles():
    phase = 2 * np.pi * 12 * TIME
    loop = [np.cos(phase), 0.5 * np.sin(phase), 0.4 * np.cos(2 * phase)]
    assert circling(*run_of(1e-2 * np.stack(loop, axis=1))) is not None


@pytest.mark.parametrize("decay", [4.0, 20.0])
def test_a_spiral_to_a_rest_point_does_not(decay):
    offsets = circle(1e-2, 20) * np.exp(-decay * TIME)[:, None]
    assert circling(*run_of(offsets)) is None


def test_a_spiral_away_from_a_rest_point_does_not():
    assert circling(*run_of(circle(1e-4, 20) * np.exp(6 * TIME)[:, None])) is None


def test_a_drift_does_not():
    straight = np.stack([0.1 * TIME, 0.05 * TIME**2], axis=1)
    assert circling(*run_of(straight)) is None
    assert circling(*run_of(straight + circle(1e-4, 30))) is None


@pytest.mark.parametrize("seed", range(10))
def test_rounding_to_and_fro_does_not(seed):
    noise = np.random.default_rng(seed).normal(size=(POINTS, 5))
    assert circling(*run_of(1e-3 * noise)) is None
    chatter = 1e-3 * np.where(np.arange(POINTS) % 2, 1.0, -1.0)[:, None] * np.ones(5)
    assert circling(*run_of(chatter + 1e-4 * noise)) is None


def test_a_few_points_do_not_tell():
    run = run_of(circle(1e-3, 4))
    assert circling(*(column[:60] for column in run)) is None


@pytest.mark.parametrize("has_kinks", [False, True])
def test_a_search_records_the_turns_and_goes_on_where_kinks_are_rounded(has_kinks):
    vectors, log_norm, margin = run_of(circle(1e-2, 20))
    columns = {"vectors": vectors, "log_norm": log_norm, "margin": margin}
    run = Mock(spec=Trajectory, successful=False, **columns)
    search = Mock(spec=Search, has_kinks=has_kinks, settings=DEFAULT)
    state = circles(search, begun(Start(vectors[-1], 5.0), 1e3, 0.0, 1e-3), run)
    assert [stage.kind for stage in state.stages] == ["circling"]
    assert state.stages[0].moved == pytest.approx(1e-2, rel=2e-2)
    assert state.result is (None if has_kinks else RESULTS.circling)
    assert state.final is not has_kinks
