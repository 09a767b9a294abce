"""The share of examples that are classified correctly, clean and attacked, held-out ones too."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._parts import check_part
from gflow._points import of_point
from gflow._typing import Params
from gflow.datasets import Dataset
from gflow.perturbations import AbstractPerturbation, Clean, clean
from gflow.problem import Problem
from gflow.rivals import Rivals


@of_point
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
    return _share(under(problem, clean(), dataset, "`accuracy(...)`"), params)


@of_point
def robust_accuracy(
    problem: Problem,
    params: Params,
    attack: AbstractPerturbation | None = None,
    *,
    dataset: Dataset | None = None,
    rivals: Rivals | None = None,
) -> Float[Array, ""]:
    """The share of examples with a positive margin under an attack: `mean_i [q_i > 0]`.

    An upper bound of the share that no perturbation of that size changes, as every attack is.

    Args:
        attack: from `gflow.perturbations`; that of the problem by default.
        dataset: as in `accuracy`.
        rivals: for three classes or more, which margin the attack lowers; see `gflow.Problem`. By
            default as in the problem, or "worst" where that has no attack.

    Raises:
        ValueError: `dataset` or `attack` does not fit; `rivals` is unknown.
    """
    return _share(_attacked(problem, attack, dataset, rivals), params)


def _attacked(problem: Problem, attack: Any, dataset: Any, rivals: Any) -> Problem:
    return under(problem, attack, dataset, "`robust_accuracy(...)`", rivals=rivals)


def _share(problem: Problem, params: Params) -> Float[Array, ""]:
    """The share of the problem's examples whose margins are all positive."""
    margins = problem.margins(params)
    smallest = margins if margins.ndim == 1 else jnp.min(margins, axis=1)
    return jnp.mean((smallest > 0).astype(float))


def under(
    problem: Problem,
    attack: AbstractPerturbation | None,
    dataset: Dataset | None = None,
    call: str = "`under(...)`",
    *,
    rivals: Rivals | None = None,
) -> Problem:
    """The problem with another attack, or with other examples of the same kind.

    Args:
        call: what the user calls, in backticks.
        rivals: see `robust_accuracy`. A problem without an attack does not know of any.

    Raises:
        TypeError: they are no attack, or no data set.
        ValueError: they do not fit.
    """
    attack = problem.perturbation if attack is None else attack
    dataset = problem.dataset if dataset is None else dataset
    check_part(call, "perturbation", attack, "attack")
    check_part(call, "dataset", dataset)
    if dataset.binary != problem.dataset.binary:
        raise ValueError(
            "`dataset` and the problem must both have labels -1 and +1, or both classes 0 .. k-1."
        )
    problem.network.check_fits(dataset.x.shape[1], dataset.num_outputs)
    attack.check_fits(np.asarray(dataset.x))
    attacked = eqx.tree_at(
        lambda p: (p.perturbation, p.dataset, p.starts),
        problem,
        (attack, dataset, attack.starts(*dataset.x.shape)),
        is_leaf=lambda leaf: leaf is None,
    )
    usual = "worst" if isinstance(problem.perturbation, Clean) else problem.rivals
    return attacked.with_rivals(usual if rivals is None else rivals)
