"""Calls that a function does not have, refused in words that name the right argument.

Python says "got an unexpected keyword argument" and leaves it there. Here one decorator, put on
every public callable, says which name is probably meant and which there are.
"""

import collections.abc
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

_Callable = TypeVar("_Callable", bound=Callable[..., Any])

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# What other libraries and papers call it, and gflow's own names for it.
_OTHER_NAMES = {
    "activation": ("power",),
    "alpha": ("step_size",),
    "attack": ("perturbation",),
    "bounds": ("box",),
    "budget": ("radius", "max_steps"),
    "callback": ("progress",),
    "clip": ("box",),
    "data": ("dataset",),
    "depth": ("widths",),
    "eps": ("radius",),
    "epsilon": ("radius",),
    "filters": ("channels",),
    "hidden": ("widths",),
    "iterations": ("num_steps", "max_steps"),
    "kappa": ("log_kappa",),
    "kernel_size": ("size",),
    "labels": ("y",),
    "layers": ("widths",),
    "learning_rate": ("optimizer", "step_size"),
    "loss": ("log_loss",),
    "lr": ("optimizer", "step_size"),
    "margin": ("gap",),
    "mode": ("gradient",),
    "model": ("network",),
    "noise": ("smoothing",),
    "norm": ("order",),
    "ord": ("order",),
    "p": ("order",),
    "parameters": ("params",),
    "rng": ("key", "seed"),
    "rtol": ("tolerance",),
    "samples": ("n",),
    "seed": ("key", "random_start"),
    "start": ("params",),
    "std": ("scale",),
    "steps": ("num_steps", "max_steps"),
    "stop": ("until",),
    "strength": ("radius",),
    "t": ("time",),
    "t1": ("time", "until"),
    "target": ("y", "until"),
    "targets": ("y", "until"),
    "tol": ("tolerance",),
    "verbose": ("progress",),
    "weights": ("params",),
}


def named(call: str | None = None, **hints: str) -> Callable[[_Callable], _Callable]:
    """A decorator: arguments that the function or class does not have are refused by name.

    So is what is neither True nor False where the annotation is `bool`, since Python takes any
    object for one of them, `escape="no"` for True. The function keeps its signature, its docstring
    and its type.

    Args:
        call: what the caller calls it, by default its own name.
        hints: a sentence for an argument that is guessed wrongly, or missing, by its name.

    Raises:
        TypeError: from the decorated function, where the call does not fit its signature.
    """

    def decorate(function: _Callable) -> _Callable:
        if isinstance(function, type):
            maker: Any = function
            maker.__init__ = named(call or function.__name__, **hints)(maker.__init__)
            return typing.cast(_Callable, maker)
        signature = inspect.signature(function)
        name = call or function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

        @functools.wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            try:
                given = signature.bind(*args, **options).arguments
            except TypeError as error:
                refusal = _refusal(name, signature, args, options, hints, error)
                raise TypeError(refusal) from None
            _check_truths(name, signature, given)
            return function(*args, **options)

        return typing.cast(_Callable, checked)

    return decorate


def _check_truths(name: str, signature: inspect.Signature, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        is_truth = signature.parameters[key].annotation is bool
        if is_truth and not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"`{name}({key}={value!r})` must be True or False.")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of the names that is probably meant by `name`, or None."""
    names = list(names)
    for known in _OTHER_NAMES.get(name.lower(), ()):
        if known in names:
            return known
    lower = {known.lower(): known for known in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[found[0]] if found else None


def _refusal(
    name: str,
    signature: inspect.Signature,
    args: Sequence[Any],
    options: dict[str, Any],
    hints: dict[str, str],
    error: TypeError,
) -> str:
    parameters = [p for key, p in signature.parameters.items() if key != "self"]
    args = args[1:] if "self" in signature.parameters else args
    known = [p.name for p in parameters if p.kind not in _GATHERING]
    unknown = [key for key in options if key not in known]
    if unknown:
        return _unknown(name, unknown[0], known, hints)
    by_position = [p for p in parameters if p.kind in _BY_POSITION]
    if len(args) > len(by_position):
        return _too_many(name, args, by_position, known[len(by_position) :])
    given = {p.name for p in by_position[: len(args)]} | set(options)
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.kind not in _GATHERING
        if needed and parameter.name not in given:
            hint = _sentence(hints.get(parameter.name))
            return f"`{name}(...)`: `{parameter.name}` is missing.{hint} {_takes(name, known)}"
    return f"`{name}(...)`: {error}. {_takes(name, known)}"


def _unknown(name: str, wrong: str, known: list[str], hints: dict[str, str]) -> str:
    meant = nearest(wrong, known)
    guess = f"; perhaps `{meant}` is meant" if meant else ""
    hint = _sentence(hints.get(wrong))
    return f"`{name}({wrong}=...)`: there is no `{wrong}`{guess}.{hint} {_takes(name, known)}"


def _too_many(
    name: str, args: Sequence[Any], by_position: list[inspect.Parameter], others: list[str]
) -> str:
    shown = ", ".join(repr(arg) if isinstance(arg, (int, float)) else "..." for arg in args)
    taken = " and ".join(f"`{p.name}`" for p in by_position)
    words = f"takes {taken} by position" if by_position else "takes no argument by position"
    message = f"`{name}({shown})`: it {words}, and was given {len(args)}."
    sequence = [typing.get_origin(p.annotation) is collections.abc.Sequence for p in by_position]
    if sequence == [True] and all(isinstance(arg, int) for arg in args):
        message += f" One sequence is meant, perhaps: `{name}(({shown}))`."
    elif others:
        message += f" Name what is meant: {', '.join(f'`{other}=`' for other in others)}."
    return message


def _takes(name: str, known: list[str]) -> str:
    return f"`{name}` takes {', '.join(f'`{key}`' for key in known) or 'nothing'}."


def _sentence(hint: str | None) -> str:
    return f" {hint}" if hint else ""
