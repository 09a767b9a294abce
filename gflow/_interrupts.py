"""Interrupts from the keyboard that Python drops.

Ctrl-C raises `KeyboardInterrupt` in whatever Python runs at that moment. Where that is a callback
of the garbage collector or of a weak reference, of which JAX has many, Python prints "Exception
ignored" and goes on: the user has asked for an end and nothing happens. While one of gflow's long
calls runs, such an interrupt is remembered, and raised between two compiled segments
(`gflow.deadline`), or at the end of the call if none came after it.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

_Callable = TypeVar("_Callable", bound=Callable[..., Any])

# One entry for each interrupt that was dropped and has not been raised since.
_dropped: list[type[BaseException]] = []
# One entry for each that was raised since the outermost call began, which ends by it.
_raised: list[type[BaseException]] = []
# The calls that run, each within the one before. An interrupt that came in an inner call is raised
# in the outer one.
_calls: list[Callable[..., Any]] = []


def interruptible(function: _Callable) -> _Callable:
    """The function, during which dropped interrupts are remembered for `raise_dropped`.

    One that came when nothing was left to be interrupted is raised at the end of the outermost
    call, as it would have been if Python had not dropped it: a loop around the call ends too.

    Python hands exceptions that it drops to `sys.unraisablehook`; the user's is restored at the end
    of the call, and gets all others.
    """

    @functools.wraps(function)
    def remembering(*args: Any, **options: Any) -> Any:
        before = sys.unraisablehook
        _calls.append(function)

        def hook(dropped: Any) -> None:
            if issubclass(dropped.exc_type, KeyboardInterrupt):
                _dropped.append(dropped.exc_type)
            else:
                before(dropped)

        sys.unraisablehook = hook
        try:
            result = function(*args, **options)
            if len(_calls) == 1 and not _raised:
                raise_dropped()
            return result
        finally:
            sys.unraisablehook = before
            _calls.pop()
            if not _calls:
                _dropped.clear()
                _raised.clear()

    return remembering  # pyright: ignore[reportReturnType]


def raise_dropped() -> None:
    """Raises the interrupt that was dropped, if one was.

    Raises:
        KeyboardInterrupt: as at the keyboard, a little later.
    """
    if _dropped:
        _raised.extend(_dropped)
        _dropped.clear()
        raise KeyboardInterrupt
