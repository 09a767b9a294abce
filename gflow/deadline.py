"""How long a call may take: a budget in seconds, looked at between compiled segments."""

import math
import time
from typing import Any, NamedTuple

from gflow._checks import is_real
from gflow._interrupts import raise_dropped


class Deadline(NamedTuple):
    """The moment by which a call is to end. What a call starts is given the seconds that are left.

    Attributes:
        moment: by `time.perf_counter`; infinite without a limit.
    """

    moment: float

    @classmethod
    def after(cls, max_seconds: Any, call: str) -> "Deadline":
        """The deadline of a call that begins now; `max_seconds` None for none.

        Raises:
            ValueError: `max_seconds` is no positive number.
        """
        if max_seconds is None:
            return cls(math.inf)
        if not is_real(max_seconds) or not max_seconds > 0:
            raise ValueError(
                f"`{call}(max_seconds={max_seconds!r})` must be None or a positive number of "
                "seconds."
            )
        return cls(time.perf_counter() + float(max_seconds))

    def passed(self) -> bool:
        """Whether it is over.

        Raises:
            KeyboardInterrupt: one came that Python dropped (`gflow._interrupts`).
        """
        raise_dropped()
        return time.perf_counter() >= self.moment

    def left(self) -> float | None:
        """What a call that is started now takes as its `max_seconds`; None without a limit.

        Positive even when the deadline has passed: such a call ends after its first segment.
        """
        if math.isinf(self.moment):
            return None
        return max(self.moment - time.perf_counter(), 1e-9)


NEVER = Deadline(math.inf)
