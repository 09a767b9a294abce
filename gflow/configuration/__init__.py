"""What `gflow run` can be told: every field, its meaning, its default, and what it may hold.

The defaults are the main job. Nothing here imports JAX, so that a wrong field is refused at once.
"""

from gflow.configuration.data import Csv, Data, Digits, Gaussian, Mnist, Npz, RandomLabels, Soudry
from gflow.configuration.job import (
    MAIN_NETWORKS,
    MAIN_PERTURBATIONS,
    MAIN_SOLVER,
    Configuration,
    labels,
)
from gflow.configuration.methods import DescentTable, LimitTable, SolverTable, UntilTable
from gflow.configuration.networks import (
    Conv,
    DeepLinear,
    Diagonal,
    Linear,
    Mlp,
    Network,
    NetworkTable,
)
from gflow.configuration.perturbations import Clean, Fgm, Fgsm, Perturbation, PerturbationTable, Pgd
from gflow.configuration.values import MANY, ONE, Table

__all__ = [
    "MAIN_NETWORKS",
    "MAIN_PERTURBATIONS",
    "MAIN_SOLVER",
    "MANY",
    "ONE",
    "Clean",
    "Configuration",
    "Conv",
    "Csv",
    "Data",
    "DeepLinear",
    "DescentTable",
    "Diagonal",
    "Digits",
    "Fgm",
    "Fgsm",
    "Gaussian",
    "LimitTable",
    "Linear",
    "Mlp",
    "Mnist",
    "Network",
    "NetworkTable",
    "Npz",
    "Perturbation",
    "PerturbationTable",
    "Pgd",
    "RandomLabels",
    "SolverTable",
    "Soudry",
    "Table",
    "UntilTable",
    "labels",
]
