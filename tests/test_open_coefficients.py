"""Verdicts where stationarity leaves coefficients at kinks open, by closed forms and by search.

A diagonal network `w = u^2 - v^2` under an l_inf attack has the largest margin at the l_1 support
vector machine, since `|w|_1 <= |u|^2 + |v|^2`: a linear program. Where `u_j = v_j = 0` the sign of
`w_j` has no say in stationarity, but in the curvature.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import gflow
from gflow import losses, networks, perturbations
from gflow.kkt.curvature import Curvature
from gflow.kkt.open_coefficients import Effects, OpenSwitches, dependent
from gflow.kkt.open_curvature import SecondOrder
from gflow.reference import largest_feasible_radius

NUM_INPUTS = 5


def signed_data(seed):
    data = gflow.datasets.gaussian(6, NUM_INPUTS, gap=0.8, seed=seed)
    return data, np.asarray(data.y)[:, None] * np.asarray(data.x)


def largest_margin(signed, kept):
    """`max min_i z_i . w` over `|w|_1 = 1` with zeros that are not kept, and w; None below 0."""
    columns = signed[:, kept]
    both, count = np.hstack([columns, -columns]), columns.shape[1]
    found = linprog(np.ones(2 * count), A_ub=-both, b_ub=-np.ones(len(both)))
    if found.status:
        return None
    w = np.zeros(signed.shape[1])
    w[kept] = (found.x[:count] - found.x[count:]) / found.fun
    return 1 / found.fun, w


def diagonal_problem(data, radius):
    return gflow.Problem(
        networks.diagonal(NUM_INPUTS, 2),
        data,
        loss=losses.exponential(),
        perturbation=perturbations.fgsm(radius),
    )


def predictor(limit):
    u, v = (np.asarray(leaf) for leaf in limit.direction)
    return u**2 - v**2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("seed", range(4))
def test_diagonal_networks_under_linf_attacks_end_at_the_sparse_maximum(seed, share):
    data, signed = signed_data(seed)
    whole = largest_margin(signed, np.full(NUM_INPUTS, True))
    assert whole is not None
    gamma, w = whole
    problem = diagonal_problem(data, share * gamma)
    limit = gflow.find_limit(problem, problem.network.init(0, scale=0.05))
    assert limit.verdict == "strict maximum" and limit.successful
    for margin in (limit.margin, limit.held_margin):  # the attack is exact: it does not jump
        assert margin == pytest.approx((1 - share) * gamma, rel=1e-9)
    np.testing.assert_allclose(predictor(limit), w, atol=1e-9)
    # Both weights of a zero are exactly 0.
    for leaf in limit.direction:
        assert not np.asarray(leaf)[np.abs(w) < 1e-12].any()
    generator = np.random.default_rng(0)
    centre = np.concatenate(limit.direction)
    for size in (1e-1, 1e-2, 1e-3):
        moved = centre + size * generator.normal(size=(20000, centre.size))
        there = moved[:, :NUM_INPUTS] ** 2 - moved[:, NUM_INPUTS:] ** 2
        margins = (there @ signed.T).min(1) - share * gamma * np.abs(there).sum(1)
        assert np.max(margins / (moved**2).sum(1)) < limit.margin


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_a_weight_that_cannot_grow_ends_at_a_saddle_where_it_would_help(seed, share):
    # Weights that begin at 0 stay there. The point is a maximum only where w_j = 0 is best.
    data, signed = signed_data(seed)
    whole = largest_margin(signed, np.full(NUM_INPUTS, True))
    assert whole is not None
    gamma, w = whole
    verdicts = []
    for missing in range(NUM_INPUTS):
        kept = np.arange(NUM_INPUTS) != missing
        restricted = largest_margin(signed, kept)
        if restricted is None:
            continue
        radius = share * restricted[0]
        problem = diagonal_problem(data, radius)
        start = [np.where(kept, leaf, 0.0) for leaf in problem.network.init(0, scale=0.05)]
        limit = gflow.find_limit(problem, tuple(start), escape=False)
        assert limit.margin == pytest.approx(restricted[0] - radius, rel=1e-9)
        expected = "saddle" if abs(w[missing]) > 1e-9 else "strict maximum"
        assert limit.verdict == expected
        assert limit.curvature is not None and not limit.curvature.undecided
        verdicts.append(expected)
        if expected == "saddle":
            left = gflow.find_limit(problem, tuple(start))
            assert left.verdict == "strict maximum"
            assert left.margin == pytest.approx(gamma - radius, rel=1e-9)
    assert {"saddle", "strict maximum"} <= set(verdicts)


def product(params, x):
    """`<U V^T, x>`, x a matrix of 3 x 3."""
    return jnp.sum((params[0] @ params[1].T) * x.reshape(3, 3))


PRODUCT = networks.custom(product, degree=2, num_inputs=9, num_outputs=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 4])
def test_products_of_matrices_under_linf_attacks_end_at_maxima(seed):
    # Zeros of `U V^T` by rows of U, by rows of V or by both: some signs have no say in
    # stationarity, others only together, and the best of all of them is a semidefinite program.
    generator = np.random.default_rng(seed)
    labels = np.where(np.arange(6) % 2, 1.0, -1.0)
    x = generator.normal(size=(6, 3, 3))
    x[:, 0, 0] += 2 * labels
    x[:, 1, 1] += labels
    data = gflow.Dataset(x.reshape(6, -1), labels)
    radius = 0.9 * largest_feasible_radius(data, order=np.inf)
    attack = perturbations.fgsm(radius)
    problem = gflow.Problem(PRODUCT, data, loss=losses.exponential(), perturbation=attack)
    generator.normal(size=12)
    start = tuple(0.3 * generator.normal(size=(3, 2)) for _ in range(2))
    limit = gflow.find_limit(problem, start)
    assert limit.verdict == "maximum within a family"
    factors = np.concatenate([np.ravel(leaf) for leaf in limit.direction])
    for size in (1e-1, 1e-2, 1e-3):
        moved = factors + size * generator.normal(size=(20000, 12))
        u, v = moved[:, :6].reshape(-1, 3, 2), moved[:, 6:].reshape(-1, 3, 2)
        w = np.einsum("njr,nkr->njk", u, v).reshape(-1, 9)
        margins = (w @ (labels[:, None] * data.x).T).min(1) - radius * np.abs(w).sum(1)
        assert np.max(margins / (moved**2).sum(1)) <= limit.margin * (1 + 1e-9)


class Made(OpenSwitches):
    """Switches whose coefficients are open, made of matrices."""

    def __init__(self, turned, bent, rows, coefficients, columns=None):
        self.turned, self.bent, self.rows, self.coefficients = turned, bent, rows, coefficients
        self.columns = np.zeros_like(rows) if columns is None else columns
        count = np.arange(len(turned))
        self.places, self.vanishing = np.stack([count, count + 10], axis=1), columns is None
        self.vanishing = np.full(len(turned), self.vanishing)

    def effects(self, vectors, which=None):
        which = np.arange(len(self.turned)) if which is None else which
        vectors = np.broadcast_to(vectors, (len(which), vectors.shape[-1]))
        turned = np.einsum("kij,kj->ki", self.turned[which], vectors)
        bent = np.einsum("kij,kj->ki", self.bent[which], vectors)
        return Effects(self.columns[which], turned, self.rows[which], bent)

    def second_order(self, values, h):
        """`h^T H(s(h)) h` for rows h."""
        first, second = h @ self.rows.T, np.einsum("ni,kij,nj->nk", h, self.bent, h)
        signs = np.sign(np.where(np.any(self.rows, axis=1), first, second))
        bends = np.einsum("ni,kij,nj->nk", h, self.turned, h)
        return h**2 @ values + np.sum((signs - self.coefficients) * bends, axis=1)


def made(generator, kinds, size):
    """Switches of these kinds: "best", "worst", "any" and "sided"."""
    bent = generator.normal(size=(len(kinds), size, size))
    bent = bent + bent.transpose(0, 2, 1)
    other = generator.normal(size=bent.shape)
    factors = {"best": 1.0, "worst": -1.0, "any": 0.0, "sided": 0.0}
    strength = 0.3 * generator.uniform(size=(len(kinds), 1, 1))
    turned = np.array([factors[kind] for kind in kinds])[:, None, None] * bent
    mixed = np.array([kind in ("any", "sided") for kind in kinds])[:, None, None]
    turned = strength * (turned + mixed * (other + other.transpose(0, 2, 1)))
    rows = generator.normal(size=(len(kinds), size))
    rows = rows * np.array([kind == "sided" for kind in kinds])[:, None]
    return Made(turned, bent, rows, generator.uniform(-1, 1, len(kinds)))


KINDS = [["best"], ["best"] * 3, ["worst"] * 2, ["any"], ["sided"], ["best", "worst", "sided"]]


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_what_is_proven_holds_for_the_coefficients_that_fall(kinds):
    generator, size, count = np.random.default_rng(3), 3, 40
    sphere = generator.normal(size=(20000, size))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    verdicts = {"maximum": 0, "saddle": 0, "undecided": 0}
    for _ in range(count):
        switches = made(generator, kinds, size)
        values = np.sort(generator.normal(size=size) + 0.8)
        basis = np.eye(size)
        found = SecondOrder(switches, Curvature(values, basis, True, 1e-7)).judged()
        lowest = switches.second_order(values, sphere).min()
        if found.undecided:
            verdicts["undecided"] += 1
        elif found.unstable.any():
            verdicts["saddle"] += 1
            escape = found.vectors[:, :1].T
            assert switches.second_order(values, escape)[0] == pytest.approx(found.values[0])
        else:
            verdicts["maximum"] += 1
            assert lowest > -1e-6
    assert min(verdicts["maximum"], verdicts["saddle"]) >= 4
    # One coefficient whose best counts leaves no gap (the S-lemma), nor do those whose worst does.
    # One that falls where no multiple of D says may.
    assert verdicts["undecided"] <= (10 if kinds == ["any"] else 0 if len(kinds) < 3 else 3)


def test_switches_that_are_multiples_count_as_one():
    # Twelve examples on one kink: one range, with the coefficient of the sum.
    generator = np.random.default_rng(0)
    single = made(generator, ["best"], 3)
    shares = generator.uniform(0.1, 1, 12) / 6
    signs = generator.choice([-1.0, 1.0], 12)
    factors = (shares * signs)[:, None, None]
    many = Made(
        factors * single.turned,
        np.sign(factors) * single.bent,
        np.zeros((12, 3)),
        signs * single.coefficients,
    )
    values = np.array([-0.02, 0.5, 1.0])
    whole = Made(shares.sum() * single.turned, single.bent, single.rows, single.coefficients)
    one, twelve = (
        SecondOrder(switches, Curvature(values, np.eye(3), True, 1e-7))
        for switches in (whole, many)
    )
    assert len(twelve.best) == 1
    np.testing.assert_allclose(one.judged().values, twelve.judged().values, atol=1e-7)


def test_coefficients_that_only_change_together_are_best_on_a_line():
    # Their columns are multiples, so that stationarity fixes one combination of the two.
    generator, improved = np.random.default_rng(1), 0
    for _ in range(20):
        both = made(generator, ["best", "best"], 3)
        column, ratio = generator.normal(size=3), generator.uniform(0.2, 5)
        # The sign's gradient pulls as its Hessian does: `D_k = c_k V_k` and the column with it.
        factors = both.turned[:, 0, 0] / both.bent[:, 0, 0]
        columns = np.stack([column, ratio * column])
        rows = columns / factors[:, None]
        switches = Made(both.turned, both.bent, rows, both.coefficients, columns)
        values = np.sort(generator.normal(size=3) + 0.8)
        found = SecondOrder(switches, Curvature(values, np.eye(3), True, 1e-7))

        def lowest(step, both=both, values=values, ratio=ratio):
            moved = step * (ratio * both.turned[0] - both.turned[1])
            return np.linalg.eigvalsh(np.diag(values) + moved)[0]

        ends = np.sort([(-1 - both.coefficients), (1 - both.coefficients)], axis=0)
        ends = ends / np.array([ratio, -1.0])
        low, high = np.sort(ends, axis=0)[0].max(), np.sort(ends, axis=0)[1].min()
        best = max(lowest(step) for step in np.linspace(low, high, 2001))
        matrix = found.worst_in(0)[0]
        assert np.linalg.eigvalsh(matrix)[0] == pytest.approx(best, abs=1e-5)
        improved += best > values[0] + 1e-2
    assert improved > 5


def test_combinations_of_columns_that_vanish_are_found_whatever_their_lengths():
    generator = np.random.default_rng(0)
    columns = generator.normal(size=(6, 5)) * np.array([1e-3, 1.0, 1e3, 1.0, 0.0])
    columns[:, 3] = 2 * columns[:, 0] * 1e3 - columns[:, 1]
    free = dependent(columns)
    assert np.trace(free) == pytest.approx(2)
    np.testing.assert_allclose(columns @ free, 0, atol=1e-9)
    np.testing.assert_allclose(free @ free, free, atol=1e-12)
    assert free[4, 4] == pytest.approx(1) and not free[2].any()


def gated(params, x):
    """`sum_j w_j x_j + w_4 x_0 x_1`, w = u^2 - v^2: not linear in x, so that frozen signs pull
    otherwise than the margin changes."""
    w = params[0] ** 2 - params[1] ** 2
    return w[:4] @ x + w[4] * x[0] * x[1]


GATED, RADIUS = networks.custom(gated, degree=2, num_inputs=4, num_outputs=1), 0.1


def gated_limit(signal, weight, escape=False):
    """Two examples speak through x_0 and two through x_3; where x_1 = -1, `w_0 - w_4` is attacked
    and comes to rest on its kink. x_2 is `signal` times the label, and u_2 begins at `weight`.
    """
    y = np.array([1.0, -1.0, 1.0, -1.0])
    x = np.array([[1, 1, 0, 0], [-1, 1, 0, 0], [0, -1, 0, 1], [0, -1, 0, -1.0]])
    x[:, 2] = signal * y
    attack = perturbations.fgsm(RADIUS)
    problem = gflow.Problem(
        GATED, gflow.Dataset(x, y), loss=losses.exponential(), perturbation=attack
    )
    start = np.array([0.5, 0.3, weight, 0.5, 0.4]), np.array([0.1, 0.28, 0.0, 0.1, 0.05])
    return gflow.find_limit(problem, start, escape=escape, throw=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal", "verdict"),
    [(0.3, "strict maximum"), (0.4, "depends on coefficients at kinks"), (0.7, "saddle")],
)
def test_where_the_system_is_not_symmetric_all_ends_must_be_stable(signal, verdict):
    # u_2 = v_2 = 0: the signs of w_2, one for all examples, have no say in stationarity. With the
    # sign s there u_2 decays at the rate 1 - 2 S (signal - s radius), S the sum of the multipliers:
    # stable at both ends, at one, or at none.
    limit = gated_limit(signal, 0.0)
    kinks, curvature = limit.kinks, limit.curvature
    assert kinks.converged and not curvature.symmetric and limit.verdict == verdict
    pull = kinks.multipliers.sum()
    rates = [1 - 2 * pull * (signal - end * RADIUS) for end in (-1, 1)]
    assert sum(rate > 0 for rate in rates) == {"strict maximum": 2, "saddle": 0}.get(verdict, 1)
    assert curvature.values[0] == pytest.approx(min(rates), abs=1e-6)
    # On the kink of w_0 - w_4 the coefficient is not open.
    inside = np.abs(kinks.coefficients) < 0.99
    assert kinks.at_kink[2:, 0].all() and inside[2:, 0].all()
    undecided = [(example, 2) for example in range(4)] if verdict.startswith("depends") else []
    assert [place for place in curvature.undecided if place[1] == 2] == undecided


def test_a_weight_beside_zero_ends_as_the_ends_say():
    ends = {signal: gated_limit(signal, 0.05, escape=True) for signal in (0.3, 0.7)}
    assert all(limit.successful for limit in ends.values())
    stays, leaves = (predictor(limit) for limit in ends.values())
    assert stays[2] == 0 and abs(leaves[2]) > 0.1
    assert ends[0.7].margin > 1.1 * ends[0.3].margin
