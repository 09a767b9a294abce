"""Methods of modules that are looked up at little cost.

`equinox.Module` makes a pytree of a method, a module itself, whenever it is looked up. That takes
20 to 50 microseconds, as long as a compiled program of a small problem, and on the way to a limit
some hundred are looked up.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

_Method = TypeVar("_Method", bound=Callable[..., Any])


class _Light:
    """A method that is looked up as a `jax.tree_util.Partial` of itself: a pytree too, with the
    module as a node, but one that is made in a microsecond.
    """

    def __init__(self, method: Callable[..., Any]):
        self.__wrapped__ = method
        self.__name__, self.__qualname__ = method.__name__, method.__qualname__
        self.__module__, self.__doc__ = method.__module__, method.__doc__

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)

    def __get__(self, instance: Any, owner: Any) -> Any:
        method = self.__wrapped__
        return method if instance is None else jax.tree_util.Partial(method, instance)


def light(method: _Method) -> _Method:
    """A method of a module of gflow that is called often outside of compiled programs."""
    return _Light(method)  # pyright: ignore[reportReturnType]
