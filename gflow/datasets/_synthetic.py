"""Synthetic sets, whose margin is known or does not exist."""

from typing import Any

import numpy as np

from gflow._checks import is_integer, is_real
from gflow._signatures import named
from gflow.datasets._dataset import Dataset

_MOST_NUMBERS = 2**40


@named()
def gaussian(n: int, d: int, *, gap: float = 0.5, seed: int = 0) -> Dataset:
    """Standard normal points, labelled by a random hyperplane and kept `gap` away from it.

    Each point is moved along the hyperplane's unit normal by `gap` to its own side, so that the set
    is separable with l2 margin at least `gap`.
    """
    _check_sizes("gaussian", n, d)
    gap = _checked_gap(gap)
    generator = _generator("gaussian", seed)
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
    _check_sizes("random_labels", n, d)
    generator = _generator("random_labels", seed)
    x = generator.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    return Dataset(x, generator.permutation(y))


def _check_sizes(call: str, n: Any, d: Any) -> None:
    if not (is_integer(n) and is_integer(d)):
        raise TypeError(f"`{call}(n={n!r}, d={d!r})`: both must be integers.")
    if n < 2 or d < 1:
        raise ValueError(f"`{call}(n={n}, d={d})`: at least two examples and one input are needed.")
    if n * d > _MOST_NUMBERS:
        raise ValueError(f"`{call}(n={n}, d={d})`: so many numbers fit into no memory.")


def _checked_gap(gap: Any) -> float:
    if not is_real(gap):
        raise TypeError(f"`gaussian(gap={gap!r})` must be one real number.")
    if not (np.isfinite(gap) and gap >= 0):
        raise ValueError(f"`gaussian(gap={gap!r})` must be finite and not negative.")
    return float(gap)


def _generator(call: str, seed: Any) -> np.random.Generator:
    """The generator of a seed. Without one NumPy would draw other numbers at every call."""
    if not is_integer(seed):
        raise TypeError(f"`{call}(seed={seed!r})` must be an integer.")
    if seed < 0:
        raise ValueError(f"`{call}(seed={seed!r})`: a seed is not negative.")
    return np.random.default_rng(seed)


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
    if not is_integer(num_random):
        raise TypeError(f"`soudry(num_random={num_random!r})` must be an integer.")
    if num_random < 0 or num_random % 2:
        raise ValueError(f"`soudry(num_random={num_random})` must be even and not negative.")
    generator = _generator("soudry", seed)
    along = 2 * np.sqrt(2) + generator.uniform(0, 2, size=num_random // 2)
    across = generator.uniform(-2, 2, size=num_random // 2)
    beyond = np.stack([along - across, along + across], axis=1) / np.sqrt(2)
    positive = np.concatenate([[[0.5, 1.5], [1.5, 0.5]], beyond])
    y = np.repeat([1.0, -1.0], len(positive))
    return Dataset(np.concatenate([positive, -positive]), y)
