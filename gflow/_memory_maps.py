"""The memory maps that gflow's compiled programs hold, and when programs are dropped for them.

XLA maps every kernel of a compiled program into memory by itself: a run on data of a new shape
takes some 500 maps. Linux allows a process 65 530 (`vm.max_map_count`), and where they are spent
LLVM ends the process, with everything that it holds. Therefore gflow drops its own programs

- once the process has spent half of what it may, whatever is in use; and
- where a problem of a new shape is made while no problem of an earlier one is left, unless shapes
  that were dropped have come back: then a caller goes through them in turn, and they are kept.

What is dropped is compiled again when it is called again. Programs of the caller's own stay.
"""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = Path("/proc/sys/vm/max_map_count")

# The share of the limit that may be spent; a single program takes less than a tenth of the rest.
_SHARE = 0.5

# Where so much of that share is left after dropping, others hold it.
_CROWDED = 0.75


class Programs:
    """All compiled programs of gflow in this process, and for whom they were compiled.

    Args:
        num_maps: the memory maps that the process holds, or None where the system does not tell.
        most_maps: how many it may hold; likewise.
    """

    def __init__(self, num_maps: Callable[[], int | None], most_maps: Callable[[], int | None]):
        self._num_maps, self._most_maps = num_maps, most_maps
        self._programs: list[Any] = []
        self._ceiling: float | None = None
        self._living: list[weakref.ref] = []
        self._shapes: set[int] = set()
        self._dropped: set[int] = set()
        self._in_turn = False
        self._lock = threading.RLock()

    def add(self, program: Any) -> None:
        """From now on this program, which can `forget()` what was compiled, counts."""
        self._programs.append(program)

    def forget(self) -> None:
        """Drops every program."""
        for program in self._programs:
            program.forget()
        # Some stand in cycles of references with what was traced, and would stay a while.
        gc.collect()

    def keep_within_limit(self) -> None:
        """Drops every program where half of the memory maps that the process may hold are spent.

        Where others hold most of them, so that dropping does not help, half of the rest may be
        spent before it is tried again.
        """
        held, most = self._num_maps(), self._most_maps()
        if held is None or most is None:
            return
        with self._lock:
            if held <= (_SHARE * most if self._ceiling is None else self._ceiling):
                return
            self.forget()
            left = self._num_maps() or 0
            crowded = left > _CROWDED * _SHARE * most
            self._ceiling = left + _SHARE * (most - left) if crowded else None

    def serve(self, problem: Any) -> None:
        """A problem was made, for which programs will be compiled; others may have ended."""
        shape = _shape(problem)
        if shape is None:
            return
        with self._lock:
            living = [one for one in self._living if one() is not None]
            self._in_turn |= shape in self._dropped
            if self._shapes and shape not in self._shapes and not living and not self._in_turn:
                self.forget()
                self._dropped |= self._shapes
                self._shapes = set()
            self._shapes.add(shape)
            self._living = [*living, weakref.ref(problem)]


def _shape(problem: Any) -> int | None:
    """What of a problem is compiled in; None where that cannot be told."""
    leaves, structure = jax.tree.flatten(problem)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return None
    try:
        return hash((structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)))
    except (TypeError, AttributeError):
        return None


def _num_maps() -> int | None:
    try:
        with _MAPS.open("rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return None


def _most_maps() -> int | None:
    try:
        return int(_MOST_MAPS.read_text())
    except (OSError, ValueError):
        return None


PROGRAMS = Programs(_num_maps, _most_maps)
