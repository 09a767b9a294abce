"""A segment's loop against that of `diffrax.diffeqsolve`, with the same solver and controller."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.control import rewound, starting
from gflow.flow.field import Field, vector_field
from gflow.flow.segment import advance
from gflow.flow.starting import Tolerances, control_of, start_cursor
from gflow.flow.until import NEVER, Until

PROBLEM = gflow.Problem(
    networks.linear(2),
    gflow.Dataset(np.array([[1.0, 0.3], [-0.4, 1.2], [0.8, 0.9]]), np.array([1, -1, 1])),
    loss=losses.logistic(),
    perturbation=perturbations.fgm(0.05),
)
START = (np.array([[0.4, -0.3]]),)
SOLVERS = {
    "explicit": diffrax.Tsit5(),
    "without a first stage that is last": diffrax.Heun(),
    "implicit, with the tolerances of the controller": diffrax.Kvaerno3(),
    "linearly implicit": ClockedRosenbrock(tolerance=1e-6),
}
CAPACITY = 24


def by_diffrax(field, solver, controller, cursor):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        solver,
        t0=cursor.control.start,
        t1=jnp.inf,
        dt0=None,
        y0=cursor.state,
        args=field,
        saveat=diffrax.SaveAt(steps=True, solver_state=True, controller_state=True),
        stepsize_controller=starting(controller, cursor.control.step),
        adjoint=diffrax.ForwardMode(),
        max_steps=CAPACITY,
        throw=False,
        solver_state=cursor.solver_state,
        controller_state=rewound(cursor.control),
    )


def normalized(states):
    lengths = np.linalg.norm(states[:, :-2], axis=1, keepdims=True)
    return np.concatenate([states[:, :-2] / lengths, states[:, -2:]], axis=1)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("until", [NEVER, Until(log_kappa=0.1)], ids=["budget", "target"])
def test_steps_are_those_of_diffeqsolve(name, until):
    solver, field = SOLVERS[name], Field(PROBLEM, Layout.of(START))
    control = control_of(solver, Tolerances(1e-6, 1e-6, 0.1), 20, until)
    cursor = start_cursor(field, solver, control, START)
    after, block = advance(field, solver, control, cursor, np.int64(1), capacity=CAPACITY)
    expected = eqx.filter_jit(by_diffrax)(field, solver, control, cursor)
    made = int(expected.stats["num_accepted_steps"])
    assert 0 < made == int(after.num_accepted)
    assert int(block.num_steps) == int(expected.stats["num_steps"])
    assert bool(block.result == expected.result)
    # The same operations, which the compiler may fuse in another order. What that changes an
    # implicit solver's last iteration may enlarge, up to the tolerance of its equations.
    accuracy = 1e-6 if name.startswith("implicit") else 1e-11
    states = np.concatenate([cursor.state[None], expected.ys[:made]])
    rows = block.rows.state[: int(block.num_rows)]
    np.testing.assert_allclose(rows[:, :-1], normalized(states)[:, :-1], rtol=0, atol=accuracy)
    np.testing.assert_allclose(after.clock, np.sum(expected.ts[:made]), rtol=1e3 * accuracy)
