"""Systems at kinks within a subspace: steps, eigenvalues and limits as by whole matrices."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import nnls

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.kkt.kinked_system import kinked_residuals, kinked_system, kinked_system_within
from gflow.kkt.subspace import invariant
from gflow.kkt.switches import passes
from gflow.kkt.variables import Variables
from gflow.limit.complementarity import FREE, ComplementaritySystem
from gflow.limit.settings import REFINE

ATTACKS = {"clean": perturbations.clean(), "fgm": perturbations.fgm(0.3)}
WITHIN = dataclasses.replace(REFINE, sizes=dataclasses.replace(REFINE.sizes, formed_at_kinks=10))


def problem_of(d, width, n, attack, seed=0):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), np.where(generator.random(n) < 0.5, -1, 1)
    network = networks.mlp((d, width, 1))
    data, attack = gflow.Dataset(x, y), ATTACKS[attack]
    return gflow.Problem(network, data, loss=losses.logistic(), perturbation=attack)


@pytest.mark.parametrize("whole", [False, True])
def test_the_subspace_is_invariant(whole):
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(2, 200, 70))
    matrix, start = left @ right.T / 200, generator.normal(size=(200, 5))
    start[:, 4] = start[:, :4].sum(axis=1)
    basis, mapped = invariant(lambda v: matrix @ v, start, 1e-10, whole=whole)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    for columns in (start, mapped, *([left] if whole else [])):
        np.testing.assert_allclose(basis @ (basis.T @ columns), columns, atol=1e-8)
    np.testing.assert_allclose(mapped, matrix @ basis, atol=1e-10)
    assert basis.shape[1] == 74  # 70 and 4: the start is independent of the range


def system_of(attack):
    """A point with random angles: nothing is solved there, and every block is filled."""
    problem, generator = problem_of(6, 5, 8, attack), np.random.default_rng(1)
    params = problem.network.init(0)
    layout, shape = Layout.of(params), (8, passes(problem).size)
    angles, multipliers = generator.uniform(-1.2, 1.2, shape), 0.1 + generator.random(8)
    theta = np.asarray(layout.flatten(params))
    index = np.flatnonzero(generator.random(angles.size) < 0.2)
    return problem, layout, Variables(theta, multipliers, angles), 1e-3, index


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_step_is_that_of_the_whole_matrix(attack):
    given = system_of(attack)
    problem, layout, variables, smoothing, index = given
    residuals = kinked_residuals(problem, layout, variables, smoothing)
    settings = dataclasses.replace(REFINE.smoothing, longest_step=np.inf, far=0.0)
    equations = ComplementaritySystem(residuals, variables, smoothing, index, 1.0, FREE, settings)
    force, margins = equations.right[: layout.size], equations.near
    within = kinked_system_within(*given, drop=1e-12, margins=margins, force=force)
    steps = [equations.step(at) for at in (kinked_system(*given), within)]
    for first, second in zip(*steps, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-8 * np.abs(first).max())


def test_on_the_subspace_are_all_eigenvalues_but_ones():
    given = system_of("fgm")
    _, layout, variables = given[:3]
    force, every = variables.theta, np.ones(8, bool)
    whole = kinked_system(*given)
    within = kinked_system_within(*given, drop=1e-12, margins=every, force=force, whole=True)
    missing = layout.size - within.basis.shape[1]
    found = np.append(np.linalg.eigvals(within.hessian), np.ones(missing))
    expected = np.linalg.eigvals(whole.hessian)
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-7)
    for name in ("gradients", "slopes"):
        np.testing.assert_allclose(getattr(within, name), getattr(whole, name), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "sizes"), [("clean", (30, 4, 15)), ("fgm", (100, 5, 20))])
def test_the_limit_is_the_same(attack, sizes):
    """124 and 505 weights; strict limits, since members of a family may differ."""
    problem = problem_of(*sizes, attack)
    start = problem.network.init(0)
    limits = [
        gflow.find_limit(problem, start, settings=gflow.LimitSettings(refine=refine))
        for refine in (REFINE, WITHIN)
    ]
    whole, within = limits
    num_weights = (sizes[0] + 1) * sizes[1]
    assert whole.kinks.linearized.basis is None
    assert within.kinks.linearized.basis.shape[1] < num_weights
    assert whole.verdict == within.verdict and whole.verdict.split()[0] in ("strict", "stable")
    assert within.margin == pytest.approx(whole.margin, rel=1e-10)
    np.testing.assert_allclose(within.kinks.direction, whole.kinks.direction, atol=1e-9)
    assert np.count_nonzero(whole.kinks.at_kink) > 0
    np.testing.assert_array_equal(within.kinks.at_kink, whole.kinks.at_kink)
    change = np.random.default_rng(9).normal(size=problem.dataset.x.shape)
    moved = [gflow.data_sensitivity(limit, change) for limit in limits]
    for first, second in zip(*moved, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6 * np.abs(first).max())


@pytest.mark.slow
def test_2000_weights_reach_a_limit_at_kinks():
    """So many that whole matrices are not formed.

    The certificate in NumPy: Clarke's subdifferential spanned by the gradients on either side of
    each kink, multipliers by non-negative least squares.
    """
    problem = problem_of(100, 20, 12, "clean")
    limit = gflow.find_limit(problem, problem.network.init(0))
    assert limit.kinks.theta.size == 2020 > REFINE.sizes.formed_at_kinks
    assert limit.kinks.linearized.basis is not None and limit.smoothing == 0
    # Of 20 neurons for 12 examples some have died out, and would grow elsewhere.
    assert limit.verdict == "stable within a family"
    weights, outer = limit.direction
    x, y = np.asarray(problem.dataset.x), np.asarray(problem.dataset.y)
    values = x @ np.asarray(weights).T
    margins = y * (np.maximum(values, 0) @ np.asarray(outer)[0])
    np.testing.assert_allclose(margins.min(), limit.margin, rtol=1e-10)
    assert stationarity(np.asarray(weights), np.asarray(outer)[0], x, y, margins) < 1e-9


def stationarity(weights, outer, x, y, margins):
    """`min |u - sum_i lambda_i g_i|` over gradients g_i at active margins. At a kink the gradient
    is `s_off + c (s_on - s_off)`, 0 <= c <= 1: with `mu = lambda c` linear in (lambda, mu), and the
    bound mu <= lambda is checked afterwards."""
    norms = np.linalg.norm(weights, axis=1)
    values = x @ weights.T
    unit = np.abs(values) / np.maximum(np.linalg.norm(x, axis=1)[:, None] * norms, 1e-300)
    kinks = (unit < 1e-9) & (norms > 1e-9 * norms.max())
    target = np.concatenate([weights.ravel(), outer])
    columns, bounds = [], []
    for i in np.flatnonzero(margins < margins.min() * (1 + 1e-8)):
        on = (values[i] > 0) & ~kinks[i]
        first = (outer * on)[:, None] * x[i]
        own = len(columns)
        columns.append(y[i] * np.concatenate([first.ravel(), np.maximum(values[i], 0) * on]))
        for j in np.flatnonzero(kinks[i]):
            column = np.zeros_like(target)
            column[j * x.shape[1] : (j + 1) * x.shape[1]] = y[i] * outer[j] * x[i]
            bounds.append((len(columns), own))
            columns.append(column)
    found, _ = nnls(np.stack(columns, axis=1), target, maxiter=10_000)
    for part, own in bounds:
        assert found[part] <= found[own] * (1 + 1e-6)
    return np.linalg.norm(np.stack(columns, axis=1) @ found - target)
