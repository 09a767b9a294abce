"""Rosenbrock methods by themselves: order, stiffness, dense output, error estimate."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow.stiff.tableaus import TABLEAUS

# Order of convergence; on the Prothero-Robinson problem with h |lambda| >> 1; of the dense output.
METHODS = {
    "Rodas3": (3, 1, 3),
    "ROS34PW2": (3, 2, 3),
    "Rodas4P": (4, 3, 3),
    "Rodas5P": (5, 3, 4),
}


def nonautonomous(t, y, args):
    first = jnp.sin(y[1]) * jnp.cos(t) - y[0] ** 2
    return jnp.stack([first, y[0] * y[1] - y[1] ** 3 + jnp.exp(-t)])


def prothero_robinson(t, y, args):
    # The solution is sin t, whatever lambda; Prothero & Robinson 1974.
    return args * (y - jnp.sin(t)) + jnp.cos(t)


def solve(method, field, start, count, *, args=None, **options):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        gflow.Rosenbrock(method),
        0.0,
        1.0,
        1.0 / count,
        jnp.asarray(start),
        args=args,
        **options,
    )


def observed_order(errors):
    """Between the two finest of steps that were halved each time."""
    return np.log2(errors[-2] / errors[-1])


@pytest.fixture(scope="module")
def exact():
    term = diffrax.ODETerm(nonautonomous)
    start = jnp.array([0.7, 0.3])
    control = diffrax.PIDController(rtol=1e-13, atol=1e-14)
    return diffrax.diffeqsolve(
        term,
        diffrax.Dopri8(),
        0.0,
        1.0,
        None,
        start,
        stepsize_controller=control,
        saveat=diffrax.SaveAt(dense=True, t1=True),
    )


@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method, exact):
    ends = [solve(method, nonautonomous, [0.7, 0.3], n).ys[-1] for n in (16, 32, 64)]
    errors = [np.linalg.norm(end - exact.ys[-1]) for end in ends]
    assert observed_order(errors) == pytest.approx(METHODS[method][0], abs=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_order_where_the_problem_is_stiff(method):
    rate = jnp.asarray(-1e6)
    ends = [solve(method, prothero_robinson, [0.0], n, args=rate).ys[-1, 0] for n in (8, 16, 32)]
    errors = [abs(float(end) - np.sin(1.0)) for end in ends]
    assert observed_order(errors) == pytest.approx(METHODS[method][1], abs=0.2)
    # Explicit methods would have to take 3e5 steps.
    assert errors[-1] < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_dense_output_between_the_steps(method, exact):
    def worst(count):
        run = solve(method, nonautonomous, [0.7, 0.3], count, saveat=diffrax.SaveAt(dense=True))
        times = np.linspace(0.013, 0.987, 41)
        return max(np.linalg.norm(run.evaluate(t) - exact.evaluate(t)) for t in times)

    # A polynomial of degree r leaves an error of order r + 1 in a step.
    assert observed_order([worst(16), worst(32)]) > METHODS[method][2] - 0.3


@pytest.mark.parametrize("method", METHODS)
def test_error_estimate_is_of_one_order_less(method):
    solver, term = gflow.Rosenbrock(method), diffrax.ODETerm(nonautonomous)
    start = jnp.array([0.7, 0.3])
    errors = []
    for h in (0.02, 0.01):
        _, error, _, _, _ = solver.step(term, 0.0, jnp.asarray(h), start, None, None, False)
        errors.append(np.linalg.norm(error))
    # The local error of the embedded method, of order p - 1, is O(h^p).
    assert observed_order(errors) == pytest.approx(METHODS[method][0], abs=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_stiffly_accurate_methods_damp_at_once(method):
    tableau = TABLEAUS[method]()
    assert tableau.order == METHODS[method][0]
    term = diffrax.ODETerm(lambda t, y, args: -1e12 * y)
    start = jnp.ones(1)
    end, *_ = gflow.Rosenbrock(method).step(term, 0.0, jnp.asarray(1.0), start, None, None, False)
    # L-stability: R(-infinity) = 0.
    assert abs(float(end[0])) < 1e-9


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="Rodas5P"):
        gflow.Rosenbrock("Rodas6")
