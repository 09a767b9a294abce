"""The results of the steps of a search, so that a search that is resumed does not repeat them.

A search is a chain of steps, each a function of the results of the steps before it and of nothing
else. The journal keeps the result of each finished step, in order. A search that is resumed runs
through the same chain; for a step that the journal holds, its result is returned without computing
it again. Steps may contain steps: once the outer one is finished, its result replaces theirs. Of
the flow that is being followed the journal keeps the place at which it stands.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from gflow.results import STOPPED, name_of
from gflow.saving import Content, Saving

_Left = TypeVar("_Left")


class Journal:
    """A journal that keeps nothing: every step is computed.

    Attributes:
        went_on: whether this call has come further than what was kept when it began. Until then it
            does not end at its deadline, so that repeated calls with few seconds come to the end.
    """

    went_on: bool = True

    def step(self, make: Callable[[], _Left]) -> _Left:
        """The result of a step: computed now, or kept from before the search was stopped.

        Args:
            make: computes it; what it returns has an attribute `result`.
        """
        return make()

    def flow(self) -> Saving:
        """How the flow that is run next keeps its place."""
        return Saving()


KEEPS_NOTHING = Journal()


class FileJournal(Journal):
    """A journal in a file.

    Args:
        saving: writes the file.
        put: makes JSON of the result of a step, and adds its arrays to a table.
        get: the inverse.
    """

    def __init__(
        self,
        saving: Saving,
        put: Callable[[Any], tuple[Any, dict[str, Any]]],
        get: Callable[[Any, Any], Any],
    ):
        self._saving, self._put = saving, put
        # Pairs of the result of a step and the number of steps that contain it.
        self._entries: list[tuple[int, Any]] = []
        self._next = self._depth = 0
        self.went_on = False
        self.place: Content | None = None
        content = saving.content
        if content is None:
            return
        header, arrays = content.header, content.arrays
        with saving.reading():
            self._entries = [(depth, left) for depth, left in get(header["steps"], arrays)]
            if header["flow"] is not None:
                own = {name: arrays[f"flow_{name}"] for name in header["arrays"]}
                self.place = Content(header["flow"], own)

    def step(self, make: Callable[[], _Left]) -> _Left:
        # `_next` is the number of entries that the chain has passed; the entry there belongs to
        # this step if it was made at the same depth.
        here, depth = self._next, self._depth
        if here < len(self._entries) and self._entries[here][0] == depth:
            self._next += 1
            return self._entries[here][1]
        self._depth += 1
        try:
            left: Any = make()
        finally:
            self._depth = depth
        # The entry of this step replaces those of the steps inside it.
        if not _stopped(left):
            self.went_on = True
            self._entries[here:] = [(depth, left)]
            self._next, self.place = here + 1, None
            if depth:  # else the search has ended, and `end` writes it
                self._saving.offer(self.content)
        return left

    def flow(self) -> Saving:
        return _Flow(self, self.place if self._next == len(self._entries) else None)

    def keep(self, place: Content, *, now: bool) -> None:
        """Keeps the place of the flow that is run."""
        self.went_on = True
        self.place = place
        self._saving.offer(self.content, now=now)

    def end(self) -> None:
        """Writes the file at once, however short ago it was written; not if the search that it
        holds was finished when the call began.
        """
        if self._saving.content is None or not self._saving.content.finished:
            self._saving.offer(self.content, now=True)

    def content(self) -> Content:
        """All of it, as a file holds it."""
        steps, arrays = self._put([list(entry) for entry in self._entries])
        header: dict[str, Any] = {"steps": steps, "flow": None}
        if self.place is not None:
            header |= {"flow": self.place.header, "arrays": list(self.place.arrays)}
            own = self.place.arrays.items()
            arrays = arrays | {f"flow_{name}": array for name, array in own}
        finished = any(depth == 0 for depth, _ in self._entries)
        return Content(header, arrays, finished)


class _Flow(Saving):
    """The place of one run of the flow, in a journal."""

    def __init__(self, journal: FileJournal, content: Content | None):
        self._journal, self.content = journal, content

    def offer(self, make: Callable[[], Content], *, now: bool = False) -> None:
        content = make()
        # The end of a run is kept as the result of its step.
        if not content.finished:
            self._journal.keep(content, now=now)


def _stopped(left: Any) -> bool:
    """Whether a step was stopped from outside, so that it is to be made again."""
    others = getattr(left, "differing", ())  # of a limit, searches for its basin
    own = left.result is not None and name_of(left.result) in STOPPED
    return own or any(map(_stopped, others))
