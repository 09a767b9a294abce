"""Functions of gflow as compiled programs, one for each structure of their arguments.

How much the compiler is to optimise each of them is chosen by `gflow._compiling`; when they are
dropped, by `gflow._memory_maps`.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.core import Tracer

from gflow import _executables
from gflow._compiling import CALLED_LESS, compiler_options, noticed, without_collections, work_of
from gflow._memory_maps import PROGRAMS
from gflow._program_names import program_name

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Call:
    """A function compiled for arguments of one structure: arrays of these shapes, and constants.

    What `equinox.filter_jit` does, but the constants are compared once a call, by the key of the
    caller: a call of a method of `Problem` costs 50 instead of 130 microseconds.

    Args:
        function: a pure one.
        leaves, structure: of its positional and keyword arguments.
        options: of the compiler.
    """

    def __init__(self, function: Callable[..., Any], leaves: Any, structure: Any, options: Any):
        # What is returned: known once the function has been traced.
        self._structure: Any = None
        self._constants: list[Any] = []
        self._places: list[int] = []
        constants = [None if eqx.is_array(leaf) else leaf for leaf in leaves]
        places = [place for place, leaf in enumerate(leaves) if eqx.is_array(leaf)]

        def of_arrays(arrays: list[Any]) -> list[Any]:
            filled = list(constants)
            for place, array in zip(places, arrays, strict=True):
                filled[place] = array
            args, options = jax.tree.unflatten(structure, filled)
            found, self._structure = jax.tree.flatten(function(*args, **options))
            known = [eqx.is_array(leaf) for leaf in found]
            self._constants = [
                None if is_array else leaf for is_array, leaf in zip(known, found, strict=True)
            ]
            self._places = [place for place, is_array in enumerate(known) if is_array]
            return [found[place] for place in self._places]

        # What XLA and its messages call the program.
        of_arrays.__name__, of_arrays.__qualname__ = function.__name__, function.__qualname__
        self.jitted: Any = jax.jit(of_arrays, compiler_options=options or None)
        self._executable: Any = None

    def from_file(self, name: str | None, arrays: list[Any]) -> None:
        """Takes the program of this name that an earlier process has kept; or compiles it and keeps
        it for later ones. Without a name JAX does all that at the first call.
        """
        if name is None:
            return
        kept = _executables.load(name, len(arrays))
        if kept is not None:
            self._executable, self._places = kept.run, kept.places
            self._constants, self._structure = jax.tree.flatten(kept.result)
            return
        self._executable, written = _executables.compiled(self.jitted, arrays)
        if written is not None:
            _executables.save(name, written, self._with(range(len(self._places))), self._places)

    def _with(self, values: Iterable[Any]) -> Any:
        """What is returned, with these values in the places of its arrays."""
        found = list(self._constants)
        for place, value in zip(self._places, values, strict=True):
            found[place] = value
        return jax.tree.unflatten(self._structure, found)

    def _run(self, arrays: list[Any]) -> list[Any]:
        if self._executable is not None:
            try:
                return self._executable(arrays)
            except (TypeError, ValueError):  # on another device than those it is compiled for
                self._executable = None
        return self.jitted(arrays)

    def __call__(self, arrays: list[Any]) -> Any:
        return self._with(self._run(arrays))


class _Program:
    """A function compiled for every structure of its arguments, known to `PROGRAMS`.

    Arrays are traced, all else is constant. JAX takes options of the compiler only for a program
    that is called from Python, not for one that is traced into another: that is one of
    `equinox.filter_jit`.

    Args:
        function: a pure one.
        options_for: options of the compiler for a call with these positional and keyword arguments.
    """

    def __init__(self, function: Callable[..., Any], options_for: Callable[[Any], dict[str, Any]]):
        self._function, self._options = function, options_for
        self._traced: Any = eqx.filter_jit(function)
        self._calls: dict[Hashable, _Call] = {}
        self.__wrapped__ = function
        self.__name__, self.__qualname__ = function.__name__, function.__qualname__
        self.__module__, self.__doc__ = function.__module__, function.__doc__
        PROGRAMS.add(self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if is_tracing():
            return self._traced(*args, **options)
        leaves, structure = jax.tree.flatten((args, options))
        key = _signature(leaves, structure)
        if key is None:
            return self._traced(*args, **options)
        if key in self._calls:
            return self._calls[key](_arrays(leaves))
        with noticed(self.__name__), without_collections():
            result = self._first_call(key, leaves, structure, self._options((args, options)))
        PROGRAMS.keep_within_limit()
        return result

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else jax.tree_util.Partial(self, instance)

    def _first_call(
        self, key: Hashable, leaves: Any, structure: Any, chosen: dict[str, Any]
    ) -> Any:
        """The first call with arguments of these shapes, by these options of the compiler."""
        arrays = _arrays(leaves)
        call = _Call(self._function, leaves, structure, chosen)
        try:
            call.from_file(self._name(leaves, structure, chosen), arrays)
            result = call(arrays)
        except jax.errors.JaxRuntimeError as error:
            if not chosen or "compile option" not in str(error):
                raise
            call = _Call(self._function, leaves, structure, {})
            result = call(arrays)
        self._calls[key] = call
        return result

    def _name(self, leaves: Any, structure: Any, options: dict[str, Any]) -> str | None:
        """That of the program among those that are kept for later processes, if any are."""
        if _executables.folder() is None:
            return None
        return program_name(self._function, jax.tree.unflatten(structure, leaves), options)

    def lower(self, *args: Any, **options: Any) -> Any:
        """The program for these arguments before it is compiled, as of `jax.jit`."""
        leaves, structure = jax.tree.flatten((args, options))
        call = _Call(self._function, leaves, structure, self._options((args, options)))
        return call.jitted.lower(_arrays(leaves))

    def num_compiled(self) -> int:
        """How many shapes it is compiled for."""
        return len(self._calls)

    def forget(self) -> None:
        """Drops what was compiled."""
        for call in self._calls.values():
            call.jitted.clear_cache()
        self._calls.clear()
        with contextlib.suppress(AttributeError):  # another version of Equinox
            self._traced._cached.clear_cache()


def _arrays(leaves: list[Any]) -> list[Any]:
    """What of the arguments is traced."""
    return [leaf for leaf in leaves if eqx.is_array(leaf)]


def is_tracing() -> bool:
    """Whether this is called while JAX traces another function."""
    try:
        from jax._src.core import trace_state_clean
    except ImportError:  # another version of JAX: as if it were, without options
        return True
    return not trace_state_clean()


def _signature(leaves: Any, structure: Any) -> Hashable | None:
    """What decides which program a call needs; None where that cannot be told."""
    parts: list[Any] = [jax.config.jax_enable_x64, structure]  # pyright: ignore
    for leaf in leaves:
        if isinstance(leaf, Tracer):
            return None
        # Equal constants of several types, such as 1, 1.0 and True, have programs of their own.
        is_array = eqx.is_array(leaf)
        parts.append(_kind_of_array(leaf) if is_array else (type(leaf), leaf))
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _kind_of_array(array: Any) -> Hashable:
    return array.shape, array.dtype, getattr(array, "weak_type", False)


def compiled(function: _Function) -> _Function:
    """Compiled as by `equinox.filter_jit`, for functions of gflow itself; see the module."""
    return _program(function, lambda given: compiler_options(work_of(given)))


def compiled_for_few_calls(function: _Function) -> _Function:
    """The same for a function that a run or a search calls a few times, as a check or a certificate
    does, so that compiling it is what it costs: on CPU it is compiled fast whatever its size.
    """
    return _program(function, lambda _: compiler_options(0))


def compiled_for_some_calls(function: _Function) -> _Function:
    """The same for a function that a search calls some ten times, as Newton's method does: compiled
    fast up to ten times the size.
    """
    return _program(function, lambda given: compiler_options(work_of(given) / CALLED_LESS))


def compiled_for_hessians(function: _Function) -> _Function:
    """The same for one of these that takes a Hessian, as many gradients as there are weights:
    optimised a little where that is not tiny.
    """

    def options_for(given: Any) -> dict[str, Any]:
        return compiler_options(work_of(given) / CALLED_LESS, work_of(given, power=2))

    return _program(function, options_for)


def compiled_for_many_steps(function: _Function) -> _Function:
    """The same for a loop of thousands of steps in one call, as of descent, so that running it is
    what it costs: always optimised.
    """
    return _program(function, lambda _: {})


def _program(function: _Function, options_for: Callable[[Any], dict[str, Any]]) -> _Function:
    return _Program(function, options_for)  # pyright: ignore[reportReturnType]
