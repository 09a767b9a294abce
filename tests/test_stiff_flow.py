"""The flow far out: few steps, the right direction, the right time, and kappa beyond any float."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.field import Field
from gflow.flow.starting import initial_state

DATA = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
STIFF = {"solver": gflow.Rosenbrock(), "tolerance": 1e-2}
LINEAR, DEEP = networks.linear(5), networks.deep_linear((5, 6, 1))


def problem(network, perturbation=None, loss=None):
    loss = losses.exponential() if loss is None else loss
    return gflow.Problem(network, DATA, loss=loss, perturbation=perturbation)


def predictor(network, params):
    product = np.ravel(network.predictor(params))
    return product / np.linalg.norm(product)


@pytest.mark.parametrize(
    ("network", "attack", "most_steps"),
    [
        (LINEAR, perturbations.clean(), 90),
        (LINEAR, perturbations.fgm(0.1), 90),
        (LINEAR, perturbations.fgsm(0.05), 90),
        (DEEP, perturbations.clean(), 120),
        (DEEP, perturbations.fgsm(0.05), 120),
    ],
)
def test_kappa_of_1e12_in_a_hundred_steps(network, attack, most_steps):
    radius, order = float(np.max(np.append(attack.radius, 0.0))), getattr(attack, "order", np.inf)
    reference = gflow.max_margin(DATA, radius=radius, order=order)
    until = gflow.Until(log_kappa=np.log(1e12))
    flow = gflow.integrate(
        problem(network, attack), network.init(0, scale=0.5), until=until, **STIFF
    )
    # Step counts differ by a few between versions of jax.
    assert flow.stats["num_steps"] <= 1.1 * most_steps
    error = np.linalg.norm(predictor(network, flow.params) - reference.direction)
    # The direction falls short of the limit by O(1/kappa).
    assert error <= 50 / 1e12


@pytest.mark.parametrize("attack", [perturbations.clean(), perturbations.fgm(0.1)])
def test_rounding_far_out_does_not_move_what_the_logits_hardly_see(attack):
    """With 20 inputs some directions change the logits so little that only the flow itself damps
    them. The Jacobian has entries as large as kappa: if its rounding met a coordinate that moves
    with the norm, it moved these directions by 2e-8.
    """
    data = gflow.datasets.gaussian(74, 20, gap=0.5, seed=0)
    network, radius = networks.linear(20), float(getattr(attack, "radius", 0.0))
    wide = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
    loose = {"solver": gflow.Rosenbrock(), "tolerance": 0.1, "rtol_direction": 0.1}
    until = gflow.Until(log_kappa=np.log(1e12))
    flow = gflow.integrate(wide, network.init(0, scale=0.1), until=until, **loose)
    limit = gflow.max_margin(data, radius=radius, order=2.0).direction
    assert np.linalg.norm(predictor(network, flow.params) - limit) <= 50 / 1e12


def test_physical_time_is_right_however_large():
    # One example, f = w x: w(t) = log(e^(c w0) + c^2 t) / c, c = 1 - radius.
    data = gflow.Dataset([[1.0], [-1.0]], [1, -1])
    attacked = gflow.Problem(
        networks.linear(1), data, loss=losses.exponential(), perturbation=perturbations.fgm(0.3)
    )
    for target, solver_tolerance, allowed in ((27.0, 1e-8, 1e-7), (5e5, 1e-6, 1e-10)):
        flow = gflow.integrate(
            attacked,
            (np.array([[0.1]]),),
            until=gflow.Until(log_kappa=np.log(target)),
            solver=gflow.Rosenbrock(),
            tolerance=solver_tolerance,
        )
        # log(1 + t) = c w + log(1 - e^(c (w0 - w))) - log(2 c^2) + ..., exact for large w.
        log_time = np.log(np.exp(0.0) - np.exp(0.7 * (0.1 - target))) + 0.7 * target
        log_time -= np.log(2 * 0.7**2)
        assert flow.log1p_time[-1] == pytest.approx(np.logaddexp(0.0, log_time), rel=allowed)


def test_the_solver_changes_where_the_flow_is_stiff():
    trained, start = problem(DEEP, perturbations.fgm(0.1)), DEEP.init(0, scale=0.5)
    until = gflow.Until(log_kappa=9.0)
    free = gflow.integrate(trained, start, until=until)
    explicit = gflow.integrate(trained, start, until=until, solver=diffrax.Tsit5())
    assert free.stats["stiff_from"] is not None
    assert explicit.stats["stiff_from"] is None
    assert free.stats["num_steps"] < 0.2 * explicit.stats["num_steps"]
    pairs = zip(free.params, explicit.params, strict=True)
    gap = np.sqrt(sum(np.sum((left - right) ** 2) for left, right in pairs))
    assert gap < 1e-6 * np.exp(0.5 * 9.0)
    # The two agree on the time as well.
    assert free.log1p_time[-1] == pytest.approx(explicit.log1p_time[-1], rel=1e-7)


def test_a_flow_that_is_not_stiff_keeps_its_solver():
    flow = gflow.integrate(problem(DEEP), DEEP.init(0), until=gflow.Until(log_kappa=3.0))
    assert flow.stats["stiff_from"] is None
    assert flow.settings["solver"] == "Tsit5"


def test_the_size_of_a_change_in_the_logits():
    network = networks.mlp((5, 4, 1), power=2)
    trained = problem(network, perturbations.fgm(0.1), losses.logistic())
    params = network.init(1, scale=1.5)
    field = Field(trained, Layout.of(params))
    state = jnp.asarray(initial_state(field.layout, params))
    change = np.random.default_rng(0).normal(size=state.size - 2)
    kappa = float(jnp.exp(field.log_kappa(state)))

    def margins(direction):
        return np.asarray(trained.margins(field.layout.unflatten(direction)))

    step, unit = 1e-6, np.asarray(state[:-2])
    shift = step * change
    slopes = (margins(unit + shift) - margins(unit - shift)) / (2 * step)
    log_weights = -np.logaddexp(0.0, kappa * margins(unit))
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    expected = np.sqrt(np.sum(weights * (kappa * slopes) ** 2))
    # Central differences: step^2 is 1e-12, rounding 1e-16 / step.
    changes = field.change_of_margins(state, jnp.asarray(change))
    np.testing.assert_allclose(changes, slopes, rtol=1e-8)
    size = field.logit_size(state, field.margins(state), changes)
    np.testing.assert_allclose(size, expected, rtol=1e-8)


@pytest.fixture(scope="module")
def capped():
    return gflow.integrate(
        problem(LINEAR, perturbations.fgm(0.1)),
        LINEAR.init(0, scale=0.5),
        until=gflow.Until(log_kappa=4000.0),
        kappa_cap=1e4,
        **STIFF,
    )


def test_kappa_leaves_floating_point_under_a_cap(capped):
    assert capped.successful
    assert capped.log_kappa[-1] == pytest.approx(4000.0, rel=1e-12)
    beyond = capped.log_kappa > np.log(1e4)
    assert beyond.any()
    assert np.all(np.isnan(capped.log1p_time[beyond]))
    assert np.all(np.isfinite(capped.log1p_time[~beyond]))
    # What is no floating-point number is NaN, never an infinity.
    assert np.all(np.isnan(capped.log_loss[capped.log_kappa > 701]))
    assert not np.any(np.isinf(capped.log_loss))
    # log(-log loss) = log kappa + log margin out there.
    expected = capped.log_kappa[-1] + np.log(capped.margin[-1])
    assert capped.log_minus_log_loss[-1] == pytest.approx(expected, abs=1e-12)
    near = capped.log_loss < -1
    np.testing.assert_allclose(
        capped.log_minus_log_loss[near & ~beyond], np.log(-capped.log_loss[near & ~beyond])
    )


def test_the_cap_moves_the_limit_by_its_inverse(capped):
    reference = gflow.max_margin(DATA, radius=0.1, order=2).direction
    errors = {1e4: np.linalg.norm(np.ravel(capped.direction[0]) - reference)}
    for cap in (1e3, 1e5):
        flow = gflow.integrate(
            capped.require_problem(),
            LINEAR.init(0, scale=0.5),
            until=gflow.Until(log_kappa=60.0),
            kappa_cap=cap,
            **STIFF,
        )
        errors[cap] = np.linalg.norm(np.ravel(flow.direction[0]) - reference)
    scaled = np.array([cap * error for cap, error in errors.items()])
    assert scaled.max() < 1.2 * scaled.min()


def test_stiff_and_capped_runs_are_read_and_restored(capped, tmp_path):
    inside = capped.at(log_kappa=5.0)
    assert float(np.log(np.linalg.norm(inside[0]))) == pytest.approx(5.0, rel=1e-12)
    again = gflow.load(capped.save(tmp_path / "capped"))
    far = again.at(log_kappa=500.0)
    # Degree 1: the norm is kappa, whose square would overflow.
    assert np.linalg.norm(far[0] / np.exp(500.0)) == pytest.approx(1.0, rel=1e-12)
    jax.tree.map(np.testing.assert_array_equal, far, capped.at(log_kappa=500.0))
    assert again.settings["kappa_cap"] == pytest.approx(1e4)


# Two tolerances: of the direction, and of what is along the path


UNTIL = gflow.Until(log_kappa=6.0)


def far(**options):
    trained = problem(DEEP, perturbations.fgm(0.1))
    options = {"solver": gflow.Rosenbrock(), "until": UNTIL} | options
    return gflow.integrate(trained, DEEP.init(0, scale=0.5), **options)


def gap(left, right):
    return float(np.linalg.norm(left.vectors[-1] - right.vectors[-1]))


@pytest.fixture(scope="module")
def tight():
    return far(tolerance=1e-10)


def test_the_direction_has_a_tolerance_of_its_own(tight):
    loose = far(tolerance=1e-2, rtol_direction=1e-2)
    assert loose.settings["rtol_direction"] == loose.settings["tolerance"] == 1e-2
    np.testing.assert_array_equal(loose.vectors, far(tolerance=1e-2).vectors)
    errors, steps = [gap(loose, tight)], [loose.stats["num_steps"]]
    for rtol in (1e-4, 1e-6):
        finer = far(tolerance=1e-2, rtol_direction=rtol)
        assert (finer.settings["tolerance"], finer.settings["rtol_direction"]) == (1e-2, rtol)
        errors.append(gap(finer, tight))
        steps.append(finer.stats["num_steps"])
        # What each of the steps in which the direction turns may add.
        assert errors[-1] <= 10 * rtol
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert steps[0] < steps[1] < steps[2]


def test_either_tolerance_binds(tight):
    # A loose bound on the direction does not loosen that on the norm and on the time.
    run = far(tolerance=1e-8, rtol_direction=1e-3)
    assert run.log1p_time[-1] == pytest.approx(tight.log1p_time[-1], abs=1e-3)
    assert run.stats["num_steps"] > far(tolerance=1e-3).stats["num_steps"]


def test_reading_keeps_the_tolerances_and_older_files_have_one(tmp_path):
    run = far(tolerance=1e-2, rtol_direction=1e-6, save=3)
    for inside in (run, gflow.load(run.save(tmp_path / "new"))):
        reached = inside.at(log_kappa=3.0)
        reference = far(tolerance=1e-10, until=gflow.Until(log_kappa=3.0)).params
        # Of norm exp(1.5) = 4.5; ten times the tolerance of the direction.
        for left, right in zip(reached, reference, strict=True):
            np.testing.assert_allclose(left, right, rtol=0, atol=4.5e-5)
    del run.settings["rtol_direction"]  # pyright: ignore[reportIndexIssue]
    older = gflow.load(run.save(tmp_path / "old"))
    assert np.all(np.isfinite(older.at(log_kappa=3.0)[0]))


@pytest.mark.parametrize("value", [True, 0.0, 1.0, np.nan])
def test_a_tolerance_of_the_direction_that_is_none(value):
    with pytest.raises((TypeError, ValueError), match="rtol_direction="):
        far(rtol_direction=value)


@pytest.mark.parametrize("linear_solver", [None, gflow.Krylov(1e-2)], ids=["dense", "inexact"])
def test_a_target_is_met_as_closely_as_asked_for(linear_solver):
    solver = gflow.Rosenbrock(linear_solver=linear_solver)
    start = DEEP.init(0, scale=0.5)

    def flow(**accuracy):
        until = gflow.Until(stationarity=1e-2, **accuracy)
        options = {**STIFF, "solver": solver, "kappa_cap": 1e3, "save": None}
        return gflow.integrate(problem(DEEP), start, until=until, **options)

    landed, close = flow(), flow(accuracy=0.1)
    assert close.stats["stopped_by"] == landed.stats["stopped_by"] == "stationarity"
    assert close.stats["num_steps"] < landed.stats["num_steps"]
    assert abs(np.log(close.stationarity[-1] / 1e-2)) <= 0.1
    assert np.all(np.abs(np.log(close.stationarity[:-1] / 1e-2)) > 0.1)
    # A step whose systems are solved to 1e-2 only comes to about 1e-9.
    closely = 1e-11 if linear_solver is None else gflow.trajectory.HELD
    assert landed.stationarity[-1] == pytest.approx(1e-2, rel=closely)


def radius_as_large_as_the_margin(times):
    """The flow of `(a, v) = w` from (0.5, 0.5) on x = (1, 1), (1, -2), at the radius 1.

    (1, 0) is the SVM direction, its margin 1. By SciPy against log(1 + t), with `|w| - a` written
    as `v^2 / (|w| + a)`, so that nothing cancels. Shape (times, 2).
    """
    across = np.array([1.0, -2.0])

    def slope(log_time, w):
        a, v = w
        norm = np.hypot(a, v)
        weights = np.exp(-across * v + v**2 / (norm + a))
        da = weights.sum() * v**2 / (norm * (norm + a))
        return np.exp(log_time) * np.array([da, weights @ (across - v / norm)])

    at = np.log1p(times)
    run = solve_ivp(slope, (0, at[-1]), [0.5, 0.5], "Radau", at, rtol=1e-11, atol=1e-12)
    return run.y.T


def test_steps_do_not_shrink_with_the_norm_at_a_radius_equal_to_the_margin():
    """There `|w|` grows like t^(1/3), and the margins of order `1/|w|` cancel to `1/|w|^2`."""
    network = networks.linear(2)
    attacked = gflow.Problem(
        network,
        gflow.Dataset([[1.0, 1.0], [-1.0, 2.0]], [1, -1]),
        loss=losses.exponential(),
        perturbation=perturbations.fgm(1.0),
    )
    start = jax.tree.map(lambda leaf: 0.5 * jnp.ones_like(leaf), network.init(0))
    # The rate of growth is known to the rounding of the margins over it, `1e-16 |w|^2 / v^2`.
    times, rounding = np.array([1e6, 1e9, 1e12, 1e15]), np.array([1e-8, 1e-8, 1e-6, 1e-4])
    right = radius_as_large_as_the_margin(times)
    flow, counts = start, []
    for time, w, error in zip(times, right, rounding, strict=True):
        until = gflow.Until(time=time)
        flow = gflow.integrate(attacked, flow, until=until, solver=gflow.Rosenbrock())
        norm = np.linalg.norm(w)
        assert np.exp(flow.log_norm[-1]) == pytest.approx(norm, rel=error)
        # The part across the SVM direction is of the order of 1/|w|.
        atol = max(error, 1e-7) / norm
        np.testing.assert_allclose(flow.vectors[-1], w / norm, rtol=0, atol=atol)
        counts.append(flow.stats["num_steps"])
    # As many for every factor of t, where they were 217, 345, 555 and 955.
    assert counts[-1] < 700 and np.all(np.diff(counts) < 140)
