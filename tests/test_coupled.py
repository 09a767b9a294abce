"""Steps with unknowns of their own for what a field depends on steeply: order, curved surfaces."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations

START = jnp.array([0.7, 0.3])
ORDERS = {"Rodas3": 3, "ROS34PW2": 3, "Rodas4P": 4, "Rodas5P": 5}


def quadratic(t, y, w):
    """`y' = f(t, y, q(y))` with both f and q nonlinear."""
    q = jnp.stack([y[0] * y[1], y[1] ** 2, jnp.sin(y[0])])
    w = q if w is None else w
    return jnp.stack([w[1] * jnp.cos(t) - w[0] * y[0], w[2] - y[1] * w[1] + jnp.exp(-t)]), q


def restoring(kappa):
    """Rotation, and back to the unit circle where off it: `w = kappa (|y|^2 - 1)`."""

    def field(t, y, w):
        q = kappa * (y @ y - 1.0)[None]
        return jnp.stack([-y[1], y[0]]) - (q if w is None else w)[0] * y, q

    return field


def plain(field):
    return lambda t, y, _: (field(t, y, None)[0], y[:0])


@eqx.filter_jit
def walked(solver, field, count):
    """`count` steps over unit time."""

    def step(i, y):
        return solver.advance(field, i / count, 1.0 / count, y).end[: y.size]

    return jax.lax.fori_loop(0, count, step, START)


@pytest.mark.parametrize("method", ORDERS)
def test_order_of_convergence(method):
    solver = gflow.Rosenbrock(method)
    fine = walked(gflow.Rosenbrock("Rodas5P"), plain(quadratic), 1000)
    errors = [np.linalg.norm(walked(solver, quadratic, n) - fine) for n in (16, 32, 64)]
    assert np.log2(errors[-2] / errors[-1]) == pytest.approx(ORDERS[method], abs=0.3)
    # The methods differ, but not in their order.
    assert errors[-1] != np.linalg.norm(walked(solver, plain(quadratic), 64) - fine)


@pytest.mark.parametrize("method", ORDERS)
def test_a_step_along_a_curved_surface_stays_on_it(method):
    kappa, h, solver = 1e8, 0.1, gflow.Rosenbrock(method)
    field, start = restoring(kappa), jnp.array([1.0, 0.0])
    moved = solver.advance(
        field, jnp.asarray(0.0), h, start, gap_size=lambda y, w, gap: jnp.abs(gap[0])
    )
    # On the circle the rotation is exact, and w is 0.
    end = moved.end[:2]
    np.testing.assert_allclose(end, [np.cos(h), np.sin(h)], atol=0.3 * h**3)
    assert abs(float(moved.end[2])) < 0.1
    assert abs(float(field(0.0, end, None)[1][0] - moved.end[2])) < 1e-2
    # Without, stages off the circle by h^2 are thrown back by kappa h^2, and beyond.
    left = solver.advance(plain(field), jnp.asarray(0.0), h, start).end
    assert not abs(float(left @ left - 1.0)) < 1.0


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_steps_do_not_shrink_where_equal_margins_are_curved(scale):
    network = networks.deep_linear((5, 5, 5, 5, 1))
    problem = gflow.Problem(
        network,
        gflow.datasets.gaussian(40, 5, gap=0.5, seed=0),
        loss=losses.exponential(),
        perturbation=perturbations.fgm(0.1),
    )
    until = gflow.Until(log_kappa=np.log(1e12))
    start = network.init(0, scale=scale)
    run = gflow.integrate(problem, start, until=until, solver=gflow.Rosenbrock(), tolerance=0.1)
    assert run.stats["num_steps"] <= 120
    steps, rise = np.diff(run.log_kappa), run.log_kappa[:-1]
    far, near = steps[rise > 20], steps[(rise > 5) & (rise <= 12)]
    assert np.median(far) > 0.5 * np.median(near)
