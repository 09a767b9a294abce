"""Adversarial perturbations: clean, FGM, FGSM and PGD.

Each is computed from the gradient of the *margin*, never of the loss, and moves along the direction
of steepest descent in its norm, `-radius * steepest_p(grad_x margin)`. So each is scale invariant,
`delta(c params) = delta(params)` for c > 0, and stays right where the loss underflows
(Lyu & Zhu 2022, Definition of scale-invariant perturbations).

All lengths are in the units of the inputs. For three classes or more `gflow.Problem(rivals=...)`
says which of an example's margins `f_y - f_j` is attacked.
"""

from gflow.perturbations._base import AbstractPerturbation, Clean, Margin, SwitchedMargin, clean
from gflow.perturbations._fast import FastGradient, fgm, fgsm
from gflow.perturbations._projected import ProjectedGradient, pgd

__all__ = [
    "AbstractPerturbation",
    "Clean",
    "FastGradient",
    "Margin",
    "ProjectedGradient",
    "SwitchedMargin",
    "clean",
    "fgm",
    "fgsm",
    "pgd",
]
