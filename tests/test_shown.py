"""What a notebook shows of an object: a few lines, with the numbers that tell it from others."""

import jax
import numpy as np
import pytest

import gflow
from gflow import datasets, losses, networks, perturbations
from gflow.kkt.curvature import Curvature
from gflow.limit.itinerary import Visit
from gflow.sweeps.table import cell

# Wide enough that NumPy would fill many lines with it.
DATA = datasets.gaussian(40, 200, seed=0)
LINEAR = networks.linear(200)


def problem(radius=0.05):
    attack = perturbations.fgm(radius, order=2)
    return gflow.Problem(LINEAR, DATA, loss=losses.logistic(), perturbation=attack)


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (perturbations.fgm, 0.1, 0.2),
        (perturbations.fgsm, 0.1, 1e-3),
        (lambda step: perturbations.pgd(0.3, step_size=step, box=(0, 1)), 0.1, 0.05),
        (lambda low: perturbations.pgd(0.3, box=(low, 1.0)), 0.0, -1.0),
        (lambda mu: networks.mlp((3, 4, 1), smoothing=mu), 0.1, 0.01),
        (lambda target: gflow.Until(log_loss=target), -1.0, -10.5),
        (lambda small: gflow.Rosenbrock(linear_solver=gflow.Krylov(tolerance=small)), 0.5, 0.001),
        (problem, 0.125, 0.25),
    ],
    ids=["fgm", "fgsm", "pgd step", "pgd box", "mlp", "until", "krylov", "problem"],
)
def test_numbers_are_shown(make, one, other):
    shown = [repr(make(value)) for value in (one, other)]
    assert str(one) in shown[0] and str(other) in shown[1] and shown[0] != shown[1]
    assert "f64[]" not in shown[0]
    # By this a table of settings names them.
    assert cell(make(one)) != cell(make(other)) and cell(make(one)) == cell(make(one))


def test_a_traced_number_is_shown_as_an_array():
    seen = []
    jax.jit(lambda radius: seen.append(repr(perturbations.fgm(radius))) or radius)(0.1)
    assert "f64[]" in seen[0]


def test_results_are_shown_in_a_line():
    reference = gflow.max_margin(DATA, radius=0.05)
    certificate = gflow.certify(problem(), (reference.direction[None],))
    point = (np.ones((1, 200)),)
    shown = {
        f"margin={reference.margin:.6g}": reference,
        "infeasible": gflow.max_margin(DATA, radius=1e3),
        f"normalized_margin={certificate.normalized_margin:.6g}": certificate,
        "1 negative, 1 zero": Curvature(np.array([-1.0, 0.0, 2.0]), np.eye(3), True, 1e-9),
        "verdict='saddle'": Visit(point, 0.1, "saddle", 3.0, 40.0, 0.2, True),
    }
    for words, value in shown.items():
        assert words in repr(value)
        assert len(repr(value)) < 250 and "\n" not in repr(value)
    assert reference.margin == pytest.approx(certificate.normalized_margin, rel=1e-12)
