"""Synthetic sets, whose margin is known or does not exist."""

import numpy as np

from gflow._signatures import named
from gflow.datasets._dataset import Dataset


@named()
def gaussian(n: int, d: int, *, gap: float = 0.5, seed: int = 0) -> Dataset:
    """Standard normal points, labelled by a random hyperplane and kept `gap` away from it.

    Each point is moved along the hyperplane's unit normal by `gap` to its own side, so that the set
    is separable with l2 margin at least `gap`.
    """
    _check_sizes(n, d, gap)
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=d)
    normal /= np.linalg.norm(normal)
    x = generator.normal(size=(n, d))
    y = np.where(x @ normal >= 0, 1.0, -1.0)
    x = x + gap * y[:, None] * normal
    if abs(y.sum()) == n:  # all on one side: reflect half of them through the origin
        x[::2], y[::2] = -x[::2], -y[::2]
    return Dataset(x, y)


@named()
def random_labels(n: int, d: int, *, seed: int = 0) -> Dataset:
    """Points on the unit sphere with labels that have nothing to do with them, half of each kind.

    No linear network separates such a set once n is well above 2 d; a wide enough ReLU network
    does.
    """
    _check_sizes(n, d, 0.0)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    return Dataset(x, generator.permutation(y))


def _check_sizes(n: int, d: int, gap: float) -> None:
    if n < 2 or d < 1:
        raise ValueError(f"`n={n}, d={d}`: at least two examples and one input are needed.")
    if not (np.isfinite(gap) and gap >= 0):
        raise ValueError(f"`gap={gap}` must be finite and not negative.")


@named()
def soudry(num_random: int = 12, *, seed: int = 0) -> Dataset:
    """Points in the plane with max-margin direction (1, 1)/sqrt(2) and l2 margin sqrt(2).

    The support vectors are (0.5, 1.5), (1.5, 0.5) with label +1 and their mirror images with label
    -1; `num_random` further points lie beyond twice that margin, half of each label.

    Raises:
        ValueError: `num_random` is odd or negative.

    Source: the example of Soudry, Hoffer, Nacson, Gunasekar & Srebro, "The Implicit Bias of
    Gradient Descent on Separable Data", JMLR 19, 2018, Figure 1.
    """
    if num_random < 0 or num_random % 2:
        raise ValueError(f"`num_random={num_random}` must be even and not negative.")
    generator = np.random.default_rng(seed)
    along = 2 * np.sqrt(2) + generator.uniform(0, 2, size=num_random // 2)
    across = generator.uniform(-2, 2, size=num_random // 2)
    beyond = np.stack([along - across, along + across], axis=1) / np.sqrt(2)
    positive = np.concatenate([[[0.5, 1.5], [1.5, 0.5]], beyond])
    y = np.repeat([1.0, -1.0], len(positive))
    return Dataset(np.concatenate([positive, -positive]), y)
