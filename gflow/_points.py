"""The door of functions of a point: is it a problem, and are these parameters of its network?"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from gflow._leaves import check_params
from gflow._typing import Params
from gflow.problem import Problem

_Function = TypeVar("_Function", bound=Callable[..., Any])


def of_point(function: _Function) -> _Function:
    """A decorator of a function of a problem and parameters, which checks that they are these.

    Raises:
        TypeError, ValueError: from the decorated function, where they are not.
    """
    call = f"`{function.__name__}(problem, params)`"

    @functools.wraps(function)
    def checked(problem: Any, params: Any, *args: Any, **options: Any) -> Any:
        check_point(problem, params, call)
        return function(problem, params, *args, **options)

    return checked  # pyright: ignore[reportReturnType]


def check_point(problem: Any, params: Params, call: str) -> None:
    """Refuses what is no problem, or no parameters of its network.

    Raises:
        TypeError, ValueError: see `gflow._leaves.check_params`.
    """
    if not isinstance(problem, Problem):
        swapped = isinstance(params, Problem)
        hint = "the two are swapped" if swapped else f"what came first is a {_kind(problem)}"
        raise TypeError(
            f"{call}: {hint}. A `gflow.Problem` comes first: network, data, loss and attack."
        )
    check_params(params, call, problem.network.parameter_shapes)


def _kind(value: Any) -> str:
    return type(value).__name__
