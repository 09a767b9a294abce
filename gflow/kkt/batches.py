"""Rows that a compiled program computes so many at a time, so that one program serves all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

BATCH = 64
"""Rows of a call of a program."""


def by_batches(
    program: Any, given: tuple[Any, ...], rows: np.ndarray, size: int
) -> Float[np.ndarray, "b P"]:
    """What `program(*given, rows)` returns for each of these rows, some at a time."""
    found = np.empty((len(rows), size))
    for chunk, padded in padded_chunks(rows, BATCH, -1):
        found[chunk] = np.asarray(program(*given, padded))[: chunk.stop - chunk.start]
    return found


def padded_chunks(rows: np.ndarray, batch: int, filling: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of so many rows, and the rows there, always `batch` of them, so that one program
    serves: of the last with `filling` in place of those that are missing. A column of -1 stands for
    none.
    """
    for start in range(0, len(rows), batch):
        chunk = slice(start, min(start + batch, len(rows)))
        short = [(0, batch - (chunk.stop - start)), *[(0, 0)] * (rows.ndim - 1)]
        yield chunk, np.pad(rows[chunk], short, constant_values=filling)
