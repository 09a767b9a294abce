"""Where a run of the flow can be taken up bit for bit: arrays and plain facts, as in a file.

What the arrays mean is known where they are made and read, in `gflow.flow.place`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow._description import NotRestorable, decode, encode


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run between two compiled segments.

    Attributes:
        leaves: the arrays of the integrator's state: point, clock, next step, the solver's own.
        log_losses: at the start and at the end of every segment so far.
        facts: counts and options, JSON.
        solver: the solver; None where a file could not hold it.
    """

    leaves: tuple[np.ndarray, ...]
    log_losses: np.ndarray
    facts: Mapping[str, Any]
    solver: Any = None

    def encode(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """The facts, for the header of a file; the leaves are added to its `arrays`."""
        arrays.update({_name(index): leaf for index, leaf in enumerate(self.leaves)})
        arrays[_name("log_losses")] = self.log_losses
        solver = encode(self.solver, arrays)
        return {"num_leaves": len(self.leaves), "facts": dict(self.facts), "solver": solver}

    @classmethod
    def decode(cls, header: Any, arrays: Any) -> "Checkpoint | None":
        """The inverse; None where a file has none, as those of earlier versions.

        Raises:
            ValueError: it is damaged.
        """
        if header is None:
            return None
        count, facts = header["num_leaves"], header["facts"]
        if type(count) is not int or count < 0 or not isinstance(facts, dict):
            raise ValueError("its checkpoint is damaged")
        leaves = tuple(np.asarray(arrays[_name(index)]) for index in range(count))
        try:
            solver = decode(header["solver"], arrays)
        except NotRestorable:
            solver = None
        return cls(leaves, np.asarray(arrays[_name("log_losses")]), facts, solver)


def _name(part: int | str) -> str:
    return f"checkpoint_{part}"
