"""Which rival class an attack is made against, where there are several.

An example of class y has a margin `m_j = f_y - f_j` against each of the k - 1 rivals j. An attack
lowers one margin, and three ways of choosing it are offered:

- "runner_up": every gradient of the attack is that of the smallest margin at the point where it is
  taken, as is usual in practice. One perturbation for an example.
- "each": against every rival j a perturbation delta_j of its own is made; the margins are
  `q_j = m_j(x + delta_j)`. The loss of `-log sum_j exp(-q_j)` is smooth, and an upper bound of the
  cross-entropy at any one of these inputs, where the attack is exact.
- "worst": of these perturbations the one that leaves the smallest `m_j(x + delta_j)`; the margins
  are those at that one input, and the loss is its cross-entropy.

For linear networks and exact attacks the last two have the same smallest margin, and the same
limit, that of `gflow.max_margin`.

Where two rivals tie, the choice among them has a kink: the runner-up at every gradient, the worst
rival once for an example.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow._selection import Selection, select_smallest

Rivals = Literal["worst", "runner_up", "each"]
RIVALS = ("worst", "runner_up", "each")


def own_margins(table: Float[Array, "r r"]) -> Float[Array, " r"]:
    """`m_j(x + delta_j)` of `table[i, j] = m_j(x + delta_i)`."""
    return own_first(table)[:, 0]


def own_first(table: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """Row i of the table begins at the margin of rival i, the others follow in cyclic order."""
    count = len(table)
    # Every row twice, read in steps of one more: no indexing, whose derivatives are slow.
    twice = jnp.concatenate([table, table], axis=1).ravel()
    return jnp.pad(twice, (0, count)).reshape(count, 2 * count + 1)[:, :count]


def margins_of_worst(
    table: Float[Array, "r r"], smoothing: Any, angles: Float[Array, " s"] | None = None
) -> tuple[Float[Array, " r"], Selection]:
    """The margins at the input attacked against the worst rival, that rival's own margin first.

    With the switches of the choice at their angles: the first is the smallest of
    `m_j(x + delta_j)`, the others are mixed with its coefficients.

    Args:
        table: `table[i, j] = m_j(x + delta_i)`.
        smoothing, angles: see `gflow._selection.select_largest`.
    """
    rows = own_first(table)
    found = select_smallest(rows[:, 0], smoothing, angles)
    return jnp.append(found.largest, found.coefficients @ rows[:, 1:]), found
