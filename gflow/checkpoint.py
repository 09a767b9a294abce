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
        facts = header["facts"]
        _check_facts(facts)
        leaves = tuple(np.asarray(arrays[_name(index)]) for index in range(header["num_leaves"]))
        try:
            solver = decode(header["solver"], arrays)
        except NotRestorable:
            solver = None
        return cls(leaves, np.asarray(arrays[_name("log_losses")]), facts, solver)


_COUNTS = {"num_steps": 0, "num_accepted": 0, "budget": 1, "stride": 1}
_KINDS = {
    **dict.fromkeys(_COUNTS, (int,)),
    "automatic": (bool,),
    "stiff_from": (int, type(None)),
    "watch": (list, type(None)),
    "passage": (list,),
    "sliding": (list,),
    "solver": (str,),
    "log_cap": (float, type(None)),
}


def _check_facts(facts: Any) -> None:
    kinds = {name: type(value) for name, value in facts.items()}
    right = kinds.keys() == _KINDS.keys() and all(kinds[name] in _KINDS[name] for name in _KINDS)
    if not (right and all(facts[name] >= least for name, least in _COUNTS.items())):
        raise ValueError("its checkpoint is damaged")


def _name(part: int | str) -> str:
    return f"checkpoint_{part}"
