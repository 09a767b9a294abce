"""Laws that every solver of `gflow.stiff` obeys: a new one is one more row.

All that is asked of a row comes from one compiled program: so many steps of one field of several
parts that do not know of each other, from wherever a walk stands.
"""

import functools
import json
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy

import gflow
from gflow import stiff
from gflow._description import decode, encode
from gflow.flow.solvers import solver_named
from gflow.stiff.tableaus import TABLEAUS, Tableau
from gflow.stiff.traits import FlatSolver, traits_of


class Row(NamedTuple):
    """A solver, and what is known of it.

    Attributes:
        solver: with fixed options.
        order: of convergence, of the error of the end in the length of the steps.
        dense: order of the dense output; the error of its polynomial is of one order more.
        estimate: order of the error estimate of a step.
        stiff: order where a rate is far larger than 1 over the step, on the problem of Prothero &
            Robinson 1974; None where that is beyond the interval of stability.
        stiffly_accurate: whether a step ends on the solution there as the rate goes to infinity.
    """

    solver: FlatSolver
    order: int
    dense: int
    estimate: int
    stiff: int | None = None
    stiffly_accurate: bool = True


SOLVERS = {
    "Rodas3": Row(gflow.Rosenbrock("Rodas3"), 3, dense=3, estimate=3, stiff=1),
    "ROS34PW2": Row(gflow.Rosenbrock("ROS34PW2"), 3, dense=3, estimate=3, stiff=2),
    "Rodas4P": Row(gflow.Rosenbrock("Rodas4P"), 4, dense=3, estimate=4, stiff=3),
    "Rodas5P": Row(gflow.Rosenbrock("Rodas5P"), 5, dense=4, estimate=5, stiff=3),
    "Rodas4P_krylov": Row(
        gflow.Rosenbrock("Rodas4P", linear_solver=gflow.Krylov(1e-12)), 4, dense=3, estimate=4
    ),
    "Rodas4P_gmres": Row(
        gflow.Rosenbrock("Rodas4P", linear_solver=lx.GMRES(1e-12, 1e-12)), 4, dense=3, estimate=4
    ),
    "chebyshev": Row(gflow.RungeKuttaChebyshev(5), 2, dense=2, estimate=3),
    "chebyshev_damped": Row(gflow.RungeKuttaChebyshev(2, damping=1.0), 2, dense=2, estimate=3),
    "chebyshev_implicit": Row(gflow.RungeKuttaChebyshev(5, num_implicit=2), 1, dense=1, estimate=2),
}
STIFF = [name for name, row in SOLVERS.items() if row.stiff is not None]

# Not symmetric, with eigenvalues -0.9 +- 1.3 i and -0.4.
MATRIX = np.array([[-0.9, 1.3, 0.5], [-1.3, -0.9, 0.2], [0.0, 0.0, -0.4]])
START = np.array([1.0, -0.5, 0.8, 0.7, 0.3, 2.0, 0.0])
LINEAR, NONLINEAR, CONSTANT, DRIVEN = slice(0, 3), slice(3, 5), 5, 6


def field(t, y, rate):
    """Linear; nonlinear and not autonomous; at rest; and with the solution sin t whatever `rate`,
    as Prothero & Robinson 1974 have it.
    """
    a, b = y[NONLINEAR]
    nonlinear = [jnp.sin(b) * jnp.cos(t) - a**2, a * b - b**3 + jnp.exp(-t)]
    driven = rate * (y[DRIVEN] - jnp.sin(t)) + jnp.cos(t)
    return jnp.concatenate([MATRIX @ y[LINEAR], jnp.stack([*nonlinear, 0.0 * a, driven])])


def exact(t):
    """The solution for a rate of -1, to 1e-12."""

    def slope(t, y):
        a, b = y
        return [np.sin(b) * np.cos(t) - a**2, a * b - b**3 + np.exp(-t)]

    nonlinear = scipy.integrate.solve_ivp(
        slope, (0.0, t), START[NONLINEAR], method="DOP853", rtol=1e-13, atol=1e-14
    ).y[:, -1]
    linear = scipy.linalg.expm(t * MATRIX) @ START[LINEAR]
    return np.concatenate([linear, nonlinear, START[[CONSTANT]], [np.sin(t)]])


TERM = diffrax.ODETerm(field)


class Walk(NamedTuple):
    """Where a walk stands after so many steps, and its last step: the error estimate, and the dense
    output inside.
    """

    step: Any
    y: Any
    memory: Any
    error: Any
    inside: Any


SHARE = 0.37


@eqx.filter_jit
def begun(solver, h, rate, start):
    memory = jax.tree.map(jnp.asarray, solver.init(TERM, 0.0, h, start, rate))
    return Walk(jnp.zeros(()), start, memory, jnp.zeros_like(start), start)


@eqx.filter_jit
def gone(solver, h, rate, walk, count):
    """A walk after `count` more steps of length h."""

    def step(_, walk):
        t0 = walk.step * h
        t1 = t0 + h
        y, error, dense, memory, _ = solver.step(TERM, t0, t1, walk.y, rate, walk.memory, False)
        between = solver.interpolation_cls(t0=t0, t1=t1, **dense)
        return Walk(walk.step + 1, y, memory, error, between.evaluate(t0 + SHARE * h))

    return jax.lax.fori_loop(0, count, step, walk)


@functools.cache
def walked(name, num_steps, rate=-1.0, made=None):
    """A walk of so many steps over unit time, or only the first `made` of them."""
    solver, h, rate = SOLVERS[name].solver, jnp.asarray(1.0 / num_steps), jnp.asarray(rate)
    start = begun(solver, h, rate, jnp.asarray(START))
    return gone(solver, h, rate, start, num_steps if made is None else made)


def observed_order(errors):
    """Of steps that were halved."""
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence(name):
    end = exact(1.0)[NONLINEAR]
    errors = [np.linalg.norm(walked(name, count).y[NONLINEAR] - end) for count in (32, 64)]
    assert observed_order(errors) == pytest.approx(SOLVERS[name].order, abs=0.3)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence_on_a_linear_problem(name):
    end = exact(1.0)[LINEAR]
    errors = [np.linalg.norm(walked(name, count).y[LINEAR] - end) for count in (16, 32)]
    # There some conditions of the next order are void: Rodas5P is of order 6.
    assert observed_order(errors) > SOLVERS[name].order - 0.3


@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_at_rest_stays_to_the_last_bit(name):
    walk = walked(name, 32)
    assert walk.y[CONSTANT] == walk.inside[CONSTANT] == START[CONSTANT]
    assert walk.error[CONSTANT] == 0.0


@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_estimate_falls_with_the_step(name):
    # Of the second step: in the first a stabilised method knows no stiff directions yet.
    sizes = [np.linalg.norm(walked(name, count, made=2).error) for count in (32, 64)]
    assert observed_order(sizes) == pytest.approx(SOLVERS[name].estimate, abs=0.35)


@pytest.mark.parametrize("name", SOLVERS)
def test_dense_output_inside_a_step(name):
    errors = [
        np.linalg.norm(walked(name, count, made=1).inside - exact(SHARE / count))
        for count in (8, 16)
    ]
    assert observed_order(errors) > SOLVERS[name].dense + 1 - 0.3


@pytest.mark.parametrize("name", SOLVERS)
def test_a_restart_changes_nothing(name):
    solver, h, rate = SOLVERS[name].solver, jnp.asarray(1 / 32), jnp.asarray(-1.0)
    half = jax.tree.map(np.asarray, walked(name, 32, made=16))
    again = gone(solver, h, rate, jax.tree.map(jnp.asarray, half), 16)
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(walked(name, 32)), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", STIFF)
def test_order_where_the_problem_is_stiff(name):
    errors = [abs(walked(name, n, rate=-1e6).y[DRIVEN] - np.sin(1.0)) for n in (16, 32)]
    assert observed_order(errors) == pytest.approx(SOLVERS[name].stiff, abs=0.2)
    # Explicit methods would have to take 3e5 steps.
    assert errors[-1] < (1e-8 if SOLVERS[name].stiffly_accurate else 1e-3)


@pytest.mark.parametrize("name", STIFF)
def test_what_is_stiff_is_damped_at_once(name):
    one, rate = jnp.asarray(1.0), jnp.asarray(-1e12)
    solver = SOLVERS[name].solver
    starts = [jnp.asarray(START).at[DRIVEN].set(distance) for distance in (0.0, 1.0)]
    on, off = (
        gone(solver, one, rate, begun(solver, one, rate, start), 1).y[DRIVEN] for start in starts
    )
    # L-stability: of the distance 1 from the solution nothing is left.
    assert abs(off - on) < 1e-9
    if SOLVERS[name].stiffly_accurate:
        assert abs(off - np.sin(1.0)) < 1e-9


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_solver_says_of_itself(name):
    row = SOLVERS[name]
    solver, traits = row.solver, traits_of(row.solver, 7)
    assert (solver.order(TERM), solver.error_order(TERM)) == (row.order, row.estimate)
    if row.stiff is not None:
        assert traits.implicit
    # A run by this name, as of a file, has a solver of the same kind that answers to it.
    usual, in_a_flow = stiff.SOLVERS[traits.name](), solver_named(traits.name, 1e-6)
    assert type(usual) is type(solver) and isinstance(in_a_flow, type(solver))
    assert traits_of(usual).name == traits_of(in_a_flow).name == traits.name
    # Wider steps never cost less, and none is free.
    assert 0 < traits.cost <= traits_of(solver, 70).cost
    assert 0 < traits.gains.shrink < traits.gains.safety < 1 < traits.gains.grow


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "Rodas4P_gmres"])
def test_a_solver_survives_its_file(name):
    solver, arrays = SOLVERS[name].solver, {}
    assert decode(json.loads(json.dumps(encode(solver, arrays))), arrays) == solver


def test_every_solver_has_a_row():
    kinds = {type(row.solver) for row in SOLVERS.values()}
    public = [getattr(stiff, name) for name in stiff.__all__]
    assert {kind for kind in public if isinstance(kind, type)} - kinds == {gflow.Krylov}
    assert stiff.SOLVERS.keys() == {traits_of(row.solver).name for row in SOLVERS.values()}, (
        "Every name in `gflow.stiff.SOLVERS` and `TABLEAUS` has a row in SOLVERS of this file."
    )


@pytest.mark.parametrize("method", TABLEAUS)
def test_a_tableau_says_its_order(method):
    tableau = TABLEAUS[method]
    assert method in SOLVERS, "A tableau has a row in SOLVERS of this file, under its name."
    assert (tableau.name, tableau.order) == (method, SOLVERS[method].order)


# That of Rodas5P enters conditions of order 5 only, of which two are checked; the other is 0 to
# rounding.
UNCHECKED = {("Rodas5P", "a", (7, 6)), ("ROS34PW2", "d", (3,))}


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("part", ["a", "C", "m", "c", "d"])
def test_a_wrong_digit_is_found(method, part):
    """In any entry, at its fifth digit."""
    tableau = TABLEAUS[method]
    fields = {name: getattr(tableau, name) for name in tableau.__dataclass_fields__}
    places = list(zip(*map(np.ndarray.tolist, np.nonzero(fields[part])), strict=True))
    for place in places:
        wrong = fields[part].copy()
        wrong[place] *= 1 + 1e-5
        if (method, part, place) not in UNCHECKED:
            with pytest.raises(ValueError, match=f"{method}: its coefficients do not fulfil"):
                Tableau(**{**fields, part: wrong})
    assert places


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="Rodas5P"):
        gflow.Rosenbrock("Rodas6")


def test_other_solvers_have_the_traits_of_their_kind():
    explicit, implicit = traits_of(diffrax.Tsit5(), 100), traits_of(diffrax.Kvaerno3(), 100)
    assert (explicit.name, implicit.name) == ("Tsit5", "Kvaerno3")
    assert (explicit.implicit, implicit.implicit) == (False, True)
    assert explicit.cost < implicit.cost
    assert not (explicit.linearised or implicit.linearised)
