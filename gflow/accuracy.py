"""The share of examples that are classified correctly, clean and attacked, held-out ones too."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._typing import Params
from gflow.datasets import Dataset
from gflow.perturbations import AbstractPerturbation, clean
from gflow.problem import Problem


def accuracy(
    problem: Problem, params: Params, *, dataset: Dataset | None = None
) -> Float[Array, ""]:
    """The share of examples with a positive margin, unperturbed: `mean_i [y_i f(x_i) > 0]`.

    For classes, that the output of its class exceeds all others; a tie counts as wrong. It does not
    depend on the norm of `params`.

    Args:
        dataset: other examples than those of the problem, such as a test set.

    Raises:
        ValueError: `dataset` does not fit the network.
    """
    return robust_accuracy(problem, params, clean(), dataset=dataset)


def robust_accuracy(
    problem: Problem,
    params: Params,
    attack: AbstractPerturbation | None = None,
    *,
    dataset: Dataset | None = None,
) -> Float[Array, ""]:
    """The share of examples with a positive margin under an attack: `mean_i [q_i > 0]`.

    An upper bound of the share that no perturbation of that size changes, as every attack is.

    Args:
        attack: from `gflow.perturbations`; that of the problem by default.
        dataset: as in `accuracy`.

    Raises:
        ValueError: `dataset` or `attack` does not fit.
    """
    margins = under(problem, attack, dataset).margins(params)
    smallest = margins if margins.ndim == 1 else jnp.min(margins, axis=1)
    return jnp.mean((smallest > 0).astype(float))


def under(
    problem: Problem, attack: AbstractPerturbation | None, dataset: Dataset | None = None
) -> Problem:
    """The problem with another attack, or with other examples of the same kind."""
    attack = problem.perturbation if attack is None else attack
    dataset = problem.dataset if dataset is None else dataset
    if dataset.binary != problem.dataset.binary:
        raise ValueError(
            "`dataset` and the problem must both have labels -1 and +1, or both classes 0 .. k-1."
        )
    problem.network.check_fits(dataset.x.shape[1], dataset.num_outputs)
    attack.check_fits(np.asarray(dataset.x))
    return eqx.tree_at(
        lambda p: (p.perturbation, p.dataset, p.starts),
        problem,
        (attack, dataset, attack.starts(*dataset.x.shape)),
        is_leaf=lambda leaf: leaf is None,
    )
