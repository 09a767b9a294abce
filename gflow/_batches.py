"""Which examples make up the mini-batches of a run: tables of indices, drawn on the host.

Drawn by NumPy and from one generator, so that `Dataset.batches` and `gflow.descend` see the same
batches for the same seed.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gflow._checks import is_integer, one_of

Sampling = Literal["shuffled", "replacement"]

NOBODY = -1
"""The index that fills up the last batch of an epoch where it is smaller than the others."""


class Batches:
    """The batches of a run, epoch after epoch.

    "shuffled": every epoch is a random order of all n examples, cut into `ceil(n / batch_size)`
    batches, of which the last may be smaller. "replacement": the examples of every batch are drawn
    independently of each other and of all other batches, uniformly from all n.

    Args:
        num_examples: n.
        batch_size: examples of a batch.
        sampling: see above.
        seed: of the generator.
    """

    def __init__(self, num_examples: int, batch_size: int, sampling: Sampling, seed: int):
        self.num_examples, self.batch_size, self.sampling = num_examples, batch_size, sampling
        self.per_epoch = -(-num_examples // batch_size)
        self._generator = np.random.default_rng(seed)

    @property
    def state(self) -> Mapping[str, Any]:
        """The state of the generator, JSON: where it has come to in its numbers."""
        return self._generator.bit_generator.state

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Draws from there on."""
        self._generator.bit_generator.state = dict(state)

    @property
    def ragged(self) -> bool:
        """Whether the last batch of an epoch is smaller than the others."""
        return self.sampling == "shuffled" and self.num_examples % self.batch_size != 0

    def draw(self, num_epochs: int) -> np.ndarray:
        """The examples of the next batches; `NOBODY` fills up a smaller one.

        How the epochs are divided between calls makes no difference. Shapes: (num_epochs *
        ceil(n / batch_size), batch_size).
        """
        places = self.per_epoch * self.batch_size
        if self.sampling == "replacement":
            table = self._generator.integers(
                self.num_examples, size=(num_epochs, places), dtype=np.int32
            )
            return table.reshape(-1, self.batch_size)
        everyone = np.tile(np.arange(self.num_examples, dtype=np.int32), (num_epochs, 1))
        table = np.full((num_epochs, places), NOBODY, np.int32)
        table[:, : self.num_examples] = self._generator.permuted(everyone, axis=1)
        return table.reshape(-1, self.batch_size)


def check_batches(
    call: str, batch_size: object, sampling: object, seed: object, num_examples: int
) -> None:
    """Raises TypeError or ValueError, naming `call`, for batches that the data do not have."""
    for name, value in (("batch_size", batch_size), ("seed", seed)):
        if not is_integer(value):
            raise TypeError(f"`{call}({name}={value!r})` must be an integer.")
    if not 1 <= batch_size <= num_examples:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"`{call}(batch_size={batch_size!r})`: a batch holds 1 to {num_examples} examples, "
            "of which the data set has so many."
        )
    if seed < 0:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"`{call}(seed={seed!r})`: a seed is not negative.")
    if not one_of(sampling, ("shuffled", "replacement")):
        raise ValueError(f"`{call}(sampling={sampling!r})`: choose 'shuffled' or 'replacement'.")
