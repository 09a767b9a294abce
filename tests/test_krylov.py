"""Linear algebra without a Jacobian: the same steps as with one."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.control import make_controller
from gflow.flow.field import Field, initial_state, path_slope
from gflow.flow.krylov import stiff_part, woodbury
from gflow.flow.rosenbrock import Rosenbrock
from gflow.flow.stiffness import implicit_cost
from gflow.flow.systems import DENSE_AT_MOST, Factorized, Recycling, shifted_system
from gflow.flow.tableaus import TABLEAUS

GENERATOR = np.random.default_rng(0)
POINTS = GENERATOR.normal(size=(12, 5))
SIGNS = np.where(GENERATOR.random(12) < 0.5, -1, 1)
CLASSES = GENERATOR.integers(0, 3, size=12)
NETWORK = networks.mlp((5, 6, 1), smoothing=0.1)
FGM = perturbations.fgm(0.08)
PROBLEMS = {
    "clean": gflow.Problem(NETWORK, gflow.Dataset(POINTS, SIGNS), loss=losses.exponential()),
    # Frozen perturbations, so that the Jacobian is not symmetric.
    "attacked": gflow.Problem(
        NETWORK, gflow.Dataset(POINTS, SIGNS), loss=losses.logistic(), perturbation=FGM
    ),
    "classes": gflow.Problem(
        networks.mlp((5, 6, 3), smoothing=0.1),
        gflow.Dataset(POINTS, CLASSES),
        loss=losses.logistic(),
        perturbation=FGM,
    ),
}


def point(problem, log_cap=np.inf):
    """A field, and a path `(u, log rho)` on which its Jacobian is worth a test."""
    params = problem.network.init(1, scale=1.0)
    field = Field(problem, Layout.of(params), np.asarray(log_cap, float))
    return field, initial_state(field.layout, params)[:-1]


def slope(field, path):
    state = jnp.append(path, 0.0)
    return path_slope(field, state, field.ascent(state))


def advanced(solver, field, path, h):
    """One step, with the preconditioner that the flow gives."""

    def precondition(most):
        part = stiff_part(field, path, most)
        return lambda shift: woodbury(part, shift)

    return solver.advance(lambda _, y: slope(field, y), jnp.asarray(0.0), h, path, precondition)


@eqx.filter_jit
def both(method, field, path, h):
    dense = advanced(Rosenbrock(method, linear_solver=lx.LU()), field, path, h)
    krylov = Rosenbrock(method, linear_solver=gflow.Krylov(1e-11, most_margins=6))
    return dense, advanced(krylov, field, path, h)


@pytest.mark.parametrize(
    ("method", "name"),
    [*((method, "attacked") for method in TABLEAUS), ("Rodas3", "clean"), ("Rodas3", "classes")],
)
def test_a_step_is_that_with_the_jacobian(method, name):
    field, path = point(PROBLEMS[name])
    dense, krylov = both(method, field, path, jnp.asarray(0.1))
    moved = np.linalg.norm(dense[0] - path)
    assert moved > 1e-3
    # Relative residuals of 1e-11, times the stages' coefficients, up to some 1e2.
    for left, right in zip(dense, krylov, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-8 * moved)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_the_stiff_part_leaves_does_not_grow_with_kappa(name):
    field, path = point(PROBLEMS[name])

    @jax.jit
    def parts(log_kappa):
        at = path.at[-1].set(log_kappa / field.problem.degree)
        part = stiff_part(field, at, 1000)
        stiff = -part.gradients.T @ part.coupling @ part.slopes
        return jax.jacfwd(lambda y: slope(field, y))(at), stiff

    norms = []
    for log_kappa in (2.0, 4.0, 6.0):
        jacobian, stiff = parts(log_kappa)
        left = np.linalg.norm(jacobian - stiff, 2)
        norms.append((np.linalg.norm(jacobian, 2), left))
    assert norms[-1][0] > 3 * norms[0][0]
    # d2 q/du2 weighted by p, which sum to 1: of the size of the margins and their slopes.
    assert max(left for _, left in norms) < 2 * norms[0][1]
    assert norms[-1][1] < 0.3 * norms[-1][0]


def test_woodbury_inverts_what_it_says():
    field, path = point(PROBLEMS["attacked"])

    @jax.jit
    def product(shift):
        part = stiff_part(field, path, 5)._replace(damping=jnp.asarray(0.4))
        tangent = jnp.eye(path.size).at[:-1, :-1].add(-jnp.outer(part.unit, part.unit))
        tangent = tangent.at[-1, -1].set(0.0)
        matrix = shift * jnp.eye(path.size) + part.gradients.T @ part.coupling @ part.slopes
        return jax.vmap(woodbury(part, shift), 1, 1)(matrix + part.damping * tangent)

    np.testing.assert_allclose(product(jnp.asarray(0.3)), np.eye(path.size), atol=1e-12)


def nonautonomous(t, y, args):
    first = jnp.sin(y[1]) * jnp.cos(t) - y[0] ** 2
    return jnp.stack([first, y[0] * y[1] - y[1] ** 3 + jnp.exp(-t)])


def end(solver, count):
    start = jnp.array([0.7, 0.3])
    term = diffrax.ODETerm(nonautonomous)
    return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 1.0 / count, start).ys[-1]


@pytest.fixture(scope="module")
def exact():
    return end(diffrax.Dopri8(), 200)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (gflow.Rosenbrock("Rodas4P", linear_solver=gflow.Krylov(1e-12)), 4),
        (gflow.RungeKuttaChebyshev(5), 2),
        (gflow.RungeKuttaChebyshev(2, damping=1.0), 2),
    ],
)
def test_orders_of_convergence(solver, order, exact):
    errors = [np.linalg.norm(end(solver, n) - exact) for n in (32, 64)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("num_stages", [3, 12])
def test_chebyshev_is_stable_where_it_says(num_stages):
    solver = gflow.RungeKuttaChebyshev(num_stages)
    term = diffrax.ODETerm(lambda t, y, args: -args * y)
    reach = jnp.linspace(0.5, 0.65 * (num_stages**2 - 1), 200)

    @jax.vmap
    def amplified(z):
        one = jnp.ones(1)
        state = solver.init(term, 0.0, 1.0, one, z)
        return solver.step(term, 0.0, 1.0, one, z, state, False)[0][0]

    assert np.abs(amplified(reach)).max() < 1.0
    # Beyond, which is what the error estimate then has to see.
    assert np.abs(amplified(jnp.array([0.75 * num_stages**2])))[0] > 1.0


def system_of(solver, size):
    like = jnp.zeros(size)
    return shifted_system(solver, lambda x: -x, like, 1.0, None, 1e-6)


def test_linear_algebra_is_chosen_by_size():
    small = eqx.filter_eval_shape(system_of, None, DENSE_AT_MOST)
    large = eqx.filter_eval_shape(system_of, None, DENSE_AT_MOST + 1)
    assert isinstance(small, Factorized) and isinstance(small.operator, lx.MatrixLinearOperator)
    assert isinstance(large, Recycling)
    dense = eqx.filter_eval_shape(system_of, lx.LU(), DENSE_AT_MOST + 1)
    assert isinstance(dense, Factorized) and isinstance(dense.operator, lx.MatrixLinearOperator)
    free = eqx.filter_eval_shape(system_of, lx.GMRES(1e-8, 1e-8), 5)
    assert isinstance(free.operator, lx.FunctionLinearOperator)
    assert isinstance(eqx.filter_eval_shape(system_of, gflow.Krylov(), 5), Recycling)
    # The switch to an implicit solver knows that beyond, a step does not grow with P.
    assert implicit_cost(DENSE_AT_MOST) > implicit_cost(10**6) == implicit_cost(10**9)


def test_memory_is_bounded():
    for size in (10**4, 10**5, 10**6, 3 * 10**6):
        directions, margins = gflow.Krylov().sized(size)
        assert 16 * size * (directions + margins) <= 2**30
    assert gflow.Krylov().sized(1000) == (64, 256)
    assert gflow.Krylov(most_directions=7, most_margins=9).sized(10**6) == (7, 9)


def test_a_solver_of_lineax_gives_the_same_step():
    field, path = point(PROBLEMS["attacked"])
    gmres = lx.GMRES(1e-12, 1e-12, restart=50)

    @eqx.filter_jit
    def step(linear_solver):
        solver = Rosenbrock("Rodas3", linear_solver=linear_solver)
        return advanced(solver, field, path, jnp.asarray(0.1))[0]

    np.testing.assert_allclose(step(gmres), step(lx.LU()), atol=1e-9)


def test_a_step_that_was_not_solved_is_rejected():
    field, path = point(PROBLEMS["attacked"])

    @eqx.filter_jit
    def error(most):
        solver = Rosenbrock(
            "Rodas3",
            linear_solver=gflow.Krylov(1e-10, most_directions=most, most_margins=1),
        )
        return advanced(solver, field, path, jnp.asarray(1.0))[1]

    assert np.all(np.isinf(error(2)))
    assert np.all(np.isfinite(error(40)))


@pytest.fixture(scope="module")
def dense_limit():
    return capped(None)


def capped(linear_solver):
    problem = PROBLEMS["attacked"]
    return gflow.integrate(
        problem,
        problem.network.init(1),
        until=gflow.Until(stationarity=1e-5, log_kappa=1e4),
        solver=gflow.Rosenbrock("Rodas4P", linear_solver=linear_solver),
        tolerance=1e-2,
        kappa_cap=1e3,
    )


def test_a_capped_flow_ends_where_the_dense_one_does(dense_limit):
    krylov = capped(gflow.Krylov(most_margins=8))
    assert krylov.stats["stopped_by"] == dense_limit.stats["stopped_by"] == "stationarity"
    pairs = zip(krylov.direction, dense_limit.direction, strict=True)
    gap = np.sqrt(sum(np.sum((left - right) ** 2) for left, right in pairs))
    # Both stop where the direction is 1e-5 from stationary.
    assert gap < 1e-2 and krylov.margin[-1] == pytest.approx(dense_limit.margin[-1], rel=1e-4)
    # Step counts differ by a few between versions of jax.
    assert krylov.stats["num_steps"] < 1.3 * dense_limit.stats["num_steps"]


def test_chebyshev_follows_the_flow():
    problem = PROBLEMS["attacked"]
    start, until = problem.network.init(1), gflow.Until(log_kappa=3.0)
    exact = gflow.integrate(problem, start, until=until)
    flow = gflow.integrate(
        problem, start, until=until, solver=gflow.RungeKuttaChebyshev(6), tolerance=1e-6
    )
    gap = np.linalg.norm(flow.vectors[-1] - exact.vectors[-1])
    # A hundred steps or so, each off by 1e-6 at most.
    assert gap < 1e-4
    assert flow.log1p_time[-1] == pytest.approx(exact.log1p_time[-1], abs=1e-3)


def test_the_switch_uses_one_control_for_all():
    # The stiff solver of `integrate` takes the tolerance as an array: no second compilation.
    assert make_controller(1e-3, 5, gflow.Until(log_kappa=1.0)).rtol == 0.0
    left, right = (gflow.Krylov(tolerance) for tolerance in (1e-3, 1e-5))
    assert jax.tree.structure(left) == jax.tree.structure(right)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gflow.Krylov(0.0),
        lambda: gflow.Krylov(most_directions=0),
        lambda: gflow.Krylov(most_margins=2.5),
        lambda: gflow.RungeKuttaChebyshev(1),
        lambda: gflow.RungeKuttaChebyshev(5, damping=0.0),
    ],
)
def test_impossible_options_are_refused(call):
    with pytest.raises(ValueError, match="`(Krylov|RungeKuttaChebyshev)\\("):
        call()
