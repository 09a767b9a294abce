"""Problems built, rebuilt, swept and refused; what is compiled again and what is not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow.losses
import gflow.networks
from gflow.datasets import Dataset
from gflow.perturbations import fgm, fgsm, pgd
from gflow.problem import Problem

RADIUS = 0.2
_generator = np.random.default_rng(11)
X = _generator.normal(size=(6, 3))
BINARY = Dataset(X, np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
CLASSES = Dataset(X, np.array([0, 1, 2, 2, 0, 1]))
WEIGHTS = (_generator.normal(size=(4, 3)), _generator.normal(size=(1, 4)))
NETWORK = gflow.networks.mlp((3, 4, 1))
LOGISTIC = gflow.losses.logistic()


def build(perturbation=None, **options):
    return Problem(NETWORK, BINARY, loss=LOGISTIC, perturbation=perturbation, **options)


class Counted:
    """Counts how often a network is traced."""

    def __init__(self):
        self.calls = 0

    def __call__(self, params, x):
        self.calls += 1
        return params[0] @ x


def test_what_is_swept_is_not_compiled_again():
    counted, weights = Counted(), (np.array([0.3, -1.0, 0.5]),)

    def problem(perturbation):
        network = gflow.networks.custom(counted, degree=1)
        return Problem(network, BINARY, loss=LOGISTIC, perturbation=perturbation)

    def traces(perturbation, log_kappa=0.0):
        before = counted.calls
        built = problem(perturbation)
        for method in (built.margins, built.log_loss):
            method(weights)
        built.ascent(weights, log_kappa)
        return counted.calls - before

    assert problem(fgm(0.1)) == problem(fgm(0.1)) != problem(fgm(0.2))
    assert traces(fgsm(0.1, smoothing=0.1)) > 0
    assert traces(fgsm(0.2, smoothing=0.1), log_kappa=600.0) == 0
    assert traces(fgsm(0.0, smoothing=0.3), log_kappa=1) == 0
    assert traces(fgsm(np.float32(0.2), smoothing=jnp.asarray(0.1)), log_kappa=np.float64(2)) == 0
    assert traces(pgd(0.1, step_size=0.05, box=(-9, 9), random_start=0)) > 0
    assert traces(pgd(0.0, step_size=0.01, box=(-8, 8), random_start=0)) == 0
    # Another program is compiled: the counter can count.
    assert traces(fgm(0.1)) > 0
    assert traces(fgm(0.2)) == 0


def test_many_radii_in_one_program():
    radii = np.array([0.0, 0.1, RADIUS])

    @eqx.filter_jit
    def sweep(radii, weights):
        def margins(radius):
            return build(fgm(radius)).margins(weights)

        return jax.vmap(margins)(radii)

    swept = np.asarray(sweep(radii, WEIGHTS))
    np.testing.assert_allclose(swept[0], build().clean_margins(WEIGHTS), rtol=1e-13)
    np.testing.assert_allclose(swept[2], build(fgm(RADIUS)).margins(WEIGHTS), rtol=1e-13)


def test_random_starts_belong_to_the_examples():
    problem = build(pgd(RADIUS, order=2, random_start=0, num_steps=1))
    assert problem.starts.shape == X.shape and build().starts is None
    same = Dataset(np.repeat(X[:1], 6, axis=0), BINARY.y)  # each its own start, at equal inputs
    problem = Problem(problem.network, same, loss=LOGISTIC, perturbation=problem.perturbation)
    delta = np.asarray(problem.perturbations(WEIGHTS))
    assert len(np.unique(delta[:, 0])) == 6
    np.testing.assert_array_equal(delta, problem.perturbations(WEIGHTS))


REFUSED = [
    (TypeError, "loss", lambda: Problem(NETWORK, BINARY, loss=gflow.losses.logistic)),
    (TypeError, "loss", lambda: Problem(NETWORK, BINARY, loss="logistic")),
    (TypeError, "network", lambda: Problem(gflow.networks.mlp, BINARY, loss=LOGISTIC)),
    (TypeError, "dataset", lambda: Problem(NETWORK, X, loss=LOGISTIC)),
    (TypeError, "perturbation", lambda: Problem(NETWORK, BINARY, loss=LOGISTIC, perturbation=0.1)),
    (ValueError, "inputs", lambda: Problem(gflow.networks.linear(4), BINARY, loss=LOGISTIC)),
    (ValueError, "outputs|labels", lambda: Problem(NETWORK, CLASSES, loss=LOGISTIC)),
    (ValueError, "box", lambda: build(pgd(0.1, box=(0.0, 1.0)))),
    ((TypeError, ValueError), "gradient", lambda: build(gradient="frosted")),
]


@pytest.mark.parametrize(("error", "names", "call"), REFUSED)
def test_refusals(error, names, call):
    with pytest.raises(error, match=names):
        call()
