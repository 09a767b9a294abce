"""Quantities of a whole trajectory that figures need and the record does not keep."""

import itertools
from typing import Any

import jax
import numpy as np


def distance_to_end(trajectory: Any) -> np.ndarray:
    """`|u_s - u_end|_2` over all leaves. Shapes: (s,)."""
    squares = [
        ((leaf - leaf[-1]) ** 2).reshape(len(leaf), -1).sum(axis=1)
        for leaf in map(np.asarray, jax.tree.leaves(trajectory.directions))
    ]
    return np.sqrt(np.sum(squares, axis=0))


def _alignments(directions: Any) -> np.ndarray:
    """`measures.layer_alignment` of each of a directions. Shapes: leaves (a, ., .); (a, pairs)."""
    layers = [np.asarray(leaf) for leaf in jax.tree.leaves(directions)]
    parts = [np.linalg.svd(layer, full_matrices=False) for layer in layers]
    return np.stack(
        [
            np.abs(np.sum(above.Vh[:, 0, :] * below.U[:, :, 0], axis=1))
            for below, above in itertools.pairwise(parts)
        ],
        axis=1,
    )


def layer_alignments(trajectory: Any, *, most: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """`measures.layer_alignment` along the run, at `most` points spread over the saved ones.

    Each point costs a singular value decomposition of every layer, so not all are taken.

    Shapes: indices of the points (a,), the last among them; alignments (a, layers - 1).

    Raises:
        ValueError: the network has no adjacent layers of matrices.
    """
    if not has_layers(trajectory):
        raise ValueError("`layer_alignments`: the network has no adjacent layers of matrices.")
    last = len(trajectory.log_loss) - 1
    points = np.unique(np.linspace(0, last, min(most, last + 1)).round().astype(int))
    directions = jax.tree.map(lambda leaf: leaf[points], trajectory.directions)
    return points, _alignments(directions)


def has_layers(trajectory: Any) -> bool:
    """Whether adjacent layers can be compared: a dense network of at least two."""
    leaves = jax.tree.leaves(trajectory.directions)
    matrices = all(np.ndim(leaf) == 3 for leaf in leaves)
    pairs = itertools.pairwise(leaves)
    return len(leaves) > 1 and matrices and all(a.shape[1] == b.shape[2] for a, b in pairs)


def final_alignment(trajectory: Any) -> float | None:
    """The smallest alignment of adjacent layers at the end, or None where there are none."""
    if not has_layers(trajectory):
        return None
    last = jax.tree.map(lambda leaf: leaf[-1:], trajectory.directions)
    return float(np.min(_alignments(last)))
