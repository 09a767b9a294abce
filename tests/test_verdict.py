"""Verdicts hold: a maximum is one of the adversarial margin, a stable rest point is returned to."""

import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import nnls

import gflow
from gflow import losses, networks, perturbations
from gflow.limit import verdict

SEEDS = range(3)
# From seeds 1 and 2 the frozen flow under FGSM comes to no rest within 5000 steps.
OTHER_SEEDS = {"frozen FGSM": range(3, 6)}
STEPS = 10.0 ** -np.arange(1, 7)
LONG = ("frozen FGSM", "total FGM", "deep linear", "linear FGSM")
SMOOTH_SIGNS = perturbations.fgsm(0.05, smoothing=0.1)
# Network, attack, gradient, and whether its limits are maxima of the margin.
KINDS = {
    "frozen FGM": (networks.mlp((4, 10, 1), power=2), perturbations.fgm(0.1), "frozen", False),
    "frozen FGSM": (networks.mlp((4, 10, 1), smoothing=0.05), SMOOTH_SIGNS, "frozen", False),
    "total FGM": (networks.mlp((4, 10, 1), power=2), perturbations.fgm(0.1), "total", True),
    "clean": (networks.mlp((4, 10, 1), power=2), perturbations.clean(), "frozen", True),
    "linear": (networks.linear(4), perturbations.fgm(0.1), "frozen", True),
    "deep linear": (networks.deep_linear((4, 3, 1)), perturbations.fgm(0.1), "frozen", True),
    "linear FGSM": (networks.linear(4), perturbations.fgsm(0.3), "frozen", True),
}


def dataset(seed, linear):
    if linear:
        return gflow.datasets.gaussian(12, 4, gap=0.7, seed=seed)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(12, 4))
    return gflow.Dataset(x, np.where(generator.random(12) < 0.5, -1, 1))


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in LONG)) for kind in KINDS],
)
def limits(request):
    """The limits of one kind, and whether they are to be maxima."""
    network, attack, gradient, maximum = KINDS[request.param]
    found = []
    for seed in OTHER_SEEDS.get(request.param, SEEDS):
        data = dataset(seed, "linear" in request.param)
        options = {"loss": losses.logistic(), "perturbation": attack, "gradient": gradient}
        problem = gflow.Problem(network, data, **options)
        found.append(gflow.find_limit(problem, network.init(seed, scale=0.5), throw=False))
    kept = [limit for limit in found if limit.successful]
    assert len(kept) >= 2
    return kept, maximum


def flat(limit):
    """The direction, flat; and the margins at a flat vector."""
    vector, unflatten = jax.flatten_util.ravel_pytree(limit.direction)
    return np.asarray(vector), lambda at: np.asarray(limit.problem.margins(unflatten(at))).ravel()


def slopes(limit, step=1e-6):
    """`dq_i/dtheta` through the perturbations, by central differences. Shapes: (m, P)."""
    unit, margins = flat(limit)
    rows = [margins(unit + step * e) - margins(unit - step * e) for e in np.eye(unit.size)]
    return np.stack(rows, axis=1) / (2 * step)


def normalized(limit, vector):
    """The normalized margin of a flat vector."""
    return flat(limit)[1](vector / np.linalg.norm(vector)).min()


def at_kinks(limit):
    return limit.kinks is not None and limit.kinks.at_kink.any()


def test_words(limits):
    kept, maximum = limits
    for limit in kept:
        assert limit.verdict in (verdict.STRICT[1 - maximum], verdict.WITHIN_FAMILY[1 - maximum])
        assert repr(limit).startswith(f"Limit({limit.verdict}, ")


def test_total_residual_is_that_of_finite_differences(limits):
    kept, maximum = limits
    for limit in kept:
        if at_kinks(limit):
            continue
        unit, _ = flat(limit)
        certificate = limit.certificate
        pull = np.ravel(certificate.multipliers) @ slopes(limit)
        expected = np.linalg.norm(unit - pull)
        # The differences' own error, as of third derivatives, grows with the steepness of signs.
        assert certificate.total_stationarity == pytest.approx(expected, abs=1e-7, rel=2e-6)
        assert (certificate.total_stationarity < 1e-10) == maximum
        shown = "of the total gradient" in str(certificate)
        assert shown == (certificate.total_stationarity != certificate.stationarity)
        assert shown or maximum


def test_only_at_a_maximum_the_margin_cannot_be_raised(limits):
    kept, maximum = limits
    for limit in kept:
        unit, _ = flat(limit)
        here = normalized(limit, unit)
        generator = np.random.default_rng(0)
        steps = generator.normal(size=(200, unit.size))
        steps *= np.repeat([1e-3, 1e-4], 100)[:, None] / np.linalg.norm(steps, axis=1)[:, None]
        if maximum:
            best = max(normalized(limit, unit + step) for step in steps)
            assert best <= here * (1 + 1e-12)
        if at_kinks(limit):
            continue
        # The margin rises along what non-negative least squares leave of u: no margin falls, and
        # the norm does.
        active = limit.polished.active
        own = slopes(limit)[active]
        _, residual = nnls(own.T, unit)
        assert (residual < 1e-8) == maximum
        if not maximum:
            left = unit - own.T @ nnls(own.T, unit)[0]
            assert max(normalized(limit, unit - step * left) for step in STEPS) > here


def test_a_stable_rest_point_is_returned_to(limits):
    kept, maximum = limits
    if maximum:
        pytest.skip("a maximum is a law of the margin alone")
    log_cap = 12.0
    for limit in kept:
        unit, _ = flat(limit)
        log_kappa = log_cap - math.log(limit.margin)
        problem, unflatten = limit.problem, jax.flatten_util.ravel_pytree(limit.direction)[1]

        @jax.jit
        def field(vector, problem=problem, unflatten=unflatten, log_kappa=log_kappa):
            """The direction's flow against log |params|, with the weights of a fixed kappa."""
            here = vector / jnp.linalg.norm(vector)
            ascent = problem.ascent(unflatten(here), log_kappa)
            pull = jax.flatten_util.ravel_pytree(ascent.vector)[0]
            growth = problem.degree * jnp.sum(ascent.weights * ascent.margins)
            return (pull - here * (here @ pull)) / growth

        jacobian = jax.jit(jax.jacfwd(field))
        generator, size = np.random.default_rng(1), 1e-3
        push = generator.normal(size=unit.size)
        moving = limit.curvature.values[~limit.curvature.neutral]
        run = solve_ivp(
            lambda _, u, field=field: np.asarray(field(u)),
            (0, math.log(1e3) / moving.min()),
            unit + size * push / np.linalg.norm(push),
            method="Radau",
            jac=lambda _, u, jacobian=jacobian: np.asarray(jacobian(u)),
            rtol=1e-8,  # the error left counts kappa times in the speed below
            atol=1e-11,
        )
        end = run.y[:, -1] / np.linalg.norm(run.y[:, -1])
        # A family is returned to elsewhere; a fixed temperature shifts the rest point by exp(-12).
        if limit.verdict == "stable rest point":
            assert np.linalg.norm(end - unit) < 0.1 * size
        assert normalized(limit, end) == pytest.approx(limit.margin, rel=1e-3)
        assert np.linalg.norm(np.asarray(field(end))) < 1e-2 * size


def test_outcomes_have_verdicts_of_their_own(limits):
    for limit in limits[0]:
        assert limit.verdict in verdict.VERDICTS
        assert limit.to_dict()["symmetric"] == limit.curvature.symmetric
        if limit.verdict not in verdict.STRICT:
            with pytest.raises(ValueError, match=limit.verdict):
                gflow.data_sensitivity(limit, np.zeros_like(limit.problem.dataset.x))
