"""gflow: the gradient flow of adversarial training, followed to its limit and certified."""

from gflow import datasets, losses, measures, networks, perturbations
from gflow.certificate import Certificate, certify
from gflow.datasets import Dataset
from gflow.descent import descend
from gflow.flow import Until, integrate
from gflow.problem import Problem
from gflow.reference import MaxMargin, max_margin
from gflow.results import RESULTS
from gflow.trajectory import RunFailed, Trajectory, load

__version__ = "0.1.0"

__all__ = [
    "RESULTS",
    "Certificate",
    "Dataset",
    "MaxMargin",
    "Problem",
    "RunFailed",
    "Trajectory",
    "Until",
    "certify",
    "datasets",
    "descend",
    "integrate",
    "load",
    "losses",
    "max_margin",
    "measures",
    "networks",
    "perturbations",
]
