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
from gflow.flow.field import Field, path_slope
from gflow.flow.krylov import StiffPart, stiff_part, woodbury
from gflow.flow.options import checked_solver
from gflow.flow.starting import initial_state
from gflow.stiff.systems import DENSE_AT_MOST, Recycling, _order, shifted_system
from gflow.stiff.tableaus import TABLEAUS
from gflow.stiff.traits import implicit_cost

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


def slope_at_weights(field, path, weights):
    """The slope with the weights p held fixed, written out."""
    unit = path[:-1] / jnp.linalg.norm(path[:-1])
    margins, pull_back = field.problem.linearize(field.layout.unflatten(unit))
    vector = field.layout.flatten(pull_back(weights)[0])
    growth = field.problem.degree * jnp.vdot(weights, margins)
    return jnp.append(vector - (unit @ vector) * unit, growth)


@eqx.filter_jit
def examined(field, path, shift, rights):
    """The Jacobian, that at fixed weights, the stiff part; and systems solved matrix-free."""
    weights = field.ascent(jnp.append(path, 0.0)).weights

    def slopes(y):
        return slope(field, y), slope_at_weights(field, y, weights)

    _, product = jax.linearize(slopes, path)
    jacobian, at_weights = jax.vmap(product, out_axes=-1)(jnp.eye(path.size))

    def precondition(most):
        few = stiff_part(field, path, most)
        return lambda shift: woodbury(few, shift)

    # The images at fixed weights are what is wanted beside each solution.
    system = shifted_system(gflow.Krylov(rank=4), product, path, shift, precondition, 1e-10)
    memory, solutions, counts = system.begin(path), [], []
    for right in rights:
        solution, memory = system.solve(right, memory)
        solutions.append(solution)
        counts.append(memory.count)
    part = stiff_part(field, path, 1000)
    return jacobian, at_weights, part, jnp.stack(solutions), jnp.stack(counts)


@pytest.mark.parametrize("name", ["clean", pytest.param("classes", marks=pytest.mark.slow)])
def test_the_jacobian_is_known_and_its_systems_solved(name):
    field, path = point(PROBLEMS[name])
    rights = GENERATOR.normal(size=(2, path.size))
    rights = jnp.asarray([*rights, rights.sum(axis=0)])
    jacobian, at_weights, part, solutions, counts = examined(field, path, jnp.asarray(0.7), rights)
    stiff = -part.gradients.T @ part.coupling @ part.slopes
    size = np.linalg.norm(jacobian, 2)
    # All that the weights add to the Jacobian is its stiff part, to rounding.
    np.testing.assert_allclose(jacobian - at_weights, stiff, atol=1e-12 * size)
    assert np.linalg.norm(stiff, 2) > 0.1 * size
    expected = np.linalg.solve(0.7 * np.eye(path.size) - jacobian, rights.T).T
    expected = np.concatenate([expected, expected @ at_weights.T], axis=1)
    np.testing.assert_allclose(solutions, expected, atol=1e-8 * np.abs(expected).max())
    # What was searched for the first two gives their sum, without a single product.
    assert 0 < counts[0] < counts[1] == counts[2] < 64


def test_woodbury_inverts_what_it_says():
    m, size, shift, damping = 5, 9, 0.3, 0.4
    unit = GENERATOR.normal(size=size - 1)
    unit /= np.linalg.norm(unit)
    tangent = np.eye(size)
    tangent[:-1, :-1] -= np.outer(unit, unit)
    gradients, slopes = GENERATOR.normal(size=(2, m, size)) @ tangent
    coupling = GENERATOR.normal(size=(m, m))
    part = StiffPart(*map(jnp.asarray, (unit, gradients, slopes, coupling, damping)))
    matrix = shift * np.eye(size) + gradients.T @ coupling @ slopes
    tangent[-1, -1] = 0.0
    matrix += damping * tangent
    columns = jax.vmap(woodbury(part, jnp.asarray(shift)), 1, 1)(jnp.asarray(matrix))
    np.testing.assert_allclose(columns, np.eye(size), atol=1e-11)


def nonautonomous(t, y, args):
    first = jnp.sin(y[1]) * jnp.cos(t) - y[0] ** 2
    return jnp.stack([first, y[0] * y[1] - y[1] ** 3 + jnp.exp(-t)])


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
    """The system, and whether it forms a matrix."""
    squares = []

    def trace(like):
        system = shifted_system(solver, lambda x: (-x, x[:0]), like, 1.0, None, 1e-6)
        squares.append(system)
        return system.solve(like, system.begin(like))[0]

    text = str(jax.make_jaxpr(trace)(jnp.zeros(size)))
    return squares[0], f"{size},{size}" in text


def test_linear_algebra_is_chosen_by_size():
    large = DENSE_AT_MOST + 1
    for solver, size, iterates, dense in [
        (None, DENSE_AT_MOST, False, True),
        (None, large, True, False),
        (lx.LU(), large, False, True),
        (lx.GMRES(1e-8, 1e-8), 100, False, False),
        (gflow.Krylov(), 100, True, False),
        (gflow.Krylov(most_directions=0), 100, False, False),
    ]:
        system, square = system_of(solver, size)
        assert isinstance(system, Recycling) == iterates and square == dense
    # The switch to an implicit solver knows that beyond, a step does not grow with P.
    assert implicit_cost(DENSE_AT_MOST) > implicit_cost(10**6) == implicit_cost(10**9)


def test_memory_is_bounded():
    for size in (10**4, 10**5, 10**6, 3 * 10**6):
        directions, margins = gflow.Krylov().sized(size)
        assert 16 * size * (directions + margins) <= 2**30
    assert gflow.Krylov().sized(1000) == (128, 128)
    assert gflow.Krylov(most_directions=7, rank=9).sized(10**6) == (7, 9)


def test_the_rank_has_two_names():
    former = gflow.Krylov(most_directions=7, most_margins=9)
    assert former == gflow.Krylov(most_directions=7, rank=9) and former.most_margins == 9
    with pytest.raises(TypeError, match="two names for one thing"):
        gflow.Krylov(rank=4, most_margins=4)


def coupled(t, y, w):
    """The same field, with `y_0^2` as an unknown of its own."""
    square = y[:1] ** 2
    slope = nonautonomous(t, y, None).at[0].add(square[0])
    return slope.at[0].add(-(square if w is None else w)[0]), square


@eqx.filter_jit
def stepped(solver):
    return solver.advance(coupled, jnp.asarray(0.1), 0.2, jnp.array([0.7, 0.3]))


@pytest.mark.parametrize("method", TABLEAUS)
def test_a_step_is_that_with_the_jacobian(method):
    dense, krylov, gmres = (
        stepped(gflow.Rosenbrock(method, linear_solver=solver))
        for solver in (lx.LU(), gflow.Krylov(1e-13), lx.GMRES(1e-13, 1e-13))
    )
    for left, middle, right in zip(dense, krylov, gmres, strict=True):
        np.testing.assert_allclose(left, middle, atol=1e-11)
        np.testing.assert_allclose(left, right, atol=1e-11)


def test_a_step_that_was_not_solved_is_rejected():
    for most, solved in ((1, False), (4, True)):
        linear_solver = gflow.Krylov(1e-10, most_directions=most)
        error = stepped(gflow.Rosenbrock("Rodas3", linear_solver=linear_solver)).error
        assert np.all(np.isfinite(error) if solved else np.isinf(error))


SEPARABLE = gflow.Problem(
    NETWORK,
    gflow.datasets.gaussian(12, 5, gap=0.5, seed=0),
    loss=losses.logistic(),
    perturbation=FGM,
)


@pytest.fixture(scope="module")
def dense_limit():
    return capped(None)


def capped(linear_solver):
    problem = SEPARABLE
    return gflow.integrate(
        problem,
        problem.network.init(1),
        until=gflow.Until(stationarity=1e-5, log_kappa=1e4),
        solver=gflow.Rosenbrock("Rodas4P", linear_solver=linear_solver),
        tolerance=1e-2,
        kappa_cap=1e3,
    )


def test_a_capped_flow_ends_where_the_dense_one_does(dense_limit):
    krylov = capped(gflow.Krylov(rank=8))
    assert krylov.stats["stopped_by"] == dense_limit.stats["stopped_by"] == "stationarity"
    pairs = zip(krylov.direction, dense_limit.direction, strict=True)
    gap = np.sqrt(sum(np.sum((left - right) ** 2) for left, right in pairs))
    # Both stop where they are 1e-5 from stationary; the direction is at most some 1e2 times that
    # from its limit, and the margin, which has its maximum there, less.
    assert gap < 1e-3 and krylov.margin[-1] == pytest.approx(dense_limit.margin[-1], rel=1e-5)
    # Step counts differ by a few between versions of jax.
    assert krylov.stats["num_steps"] < 1.3 * dense_limit.stats["num_steps"]


def test_chebyshev_follows_the_flow():
    problem = SEPARABLE
    start, until = problem.network.init(1), gflow.Until(log_kappa=3.0)
    exact = gflow.integrate(problem, start, until=until)
    flow = gflow.integrate(
        problem, start, until=until, solver=gflow.RungeKuttaChebyshev(6), tolerance=1e-6
    )
    gap = np.linalg.norm(flow.vectors[-1] - exact.vectors[-1])
    # A hundred steps or so, each off by 1e-6 at most.
    assert gap < 1e-4
    assert flow.log1p_time[-1] == pytest.approx(exact.log1p_time[-1], abs=1e-3)


def test_tolerances_are_arrays():
    # Python numbers would be compiled into the program.
    assert len(jax.tree.leaves(gflow.Krylov(1e-3))) == 1
    solver = checked_solver(gflow.Rosenbrock(linear_solver=gflow.Krylov()), 1e-3)
    assert isinstance(solver, gflow.Rosenbrock)
    assert solver.tolerance == pytest.approx(1e-5) and isinstance(solver.tolerance, np.generic)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gflow.Krylov(0.0),
        lambda: gflow.Krylov(most_directions=-1),
        lambda: gflow.Krylov(rank=0),
        lambda: gflow.Krylov(most_margins=0),
        lambda: gflow.RungeKuttaChebyshev(1),
        lambda: gflow.RungeKuttaChebyshev(5, damping=0.0),
    ],
)
def test_impossible_options_are_refused(call):
    with pytest.raises(ValueError, match=r"`(Krylov|RungeKuttaChebyshev)\("):
        call()


@pytest.mark.parametrize("size", [1, 2, 65])
def test_the_order_of_the_rows_is_that_of_jax(size):
    _, pivots, order = jax.lax.linalg.lu(np.random.default_rng(size).normal(size=(size, size)))
    np.testing.assert_array_equal(_order(pivots), order)
