"""gflow's compiled programs, and the memory maps that they hold.

XLA maps every kernel of a compiled program into memory by itself: a run on data of a new shape
takes some 500 maps. Linux allows a process 65 530 (`vm.max_map_count`), and where they are spent
LLVM ends the process, with everything that it holds. Therefore gflow drops its own programs

- once the process has spent half of what it may, whatever is in use; and
- where a problem of a new shape is made while no problem of an earlier one is left, unless shapes
  that were dropped have come back: then a caller goes through them in turn, and they are kept.

What is dropped is compiled again when it is called again. Programs of the caller's own stay.

How much the compiler is to optimise each of them is chosen by `gflow._compiling`.
"""

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.core import Tracer

from gflow._compiling import CALLED_LESS, compiler_options, noticed, without_collections, work_of

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = Path("/proc/sys/vm/max_map_count")

# The share of the limit that may be spent; a single program takes less than a tenth of the rest.
_SHARE = 0.5

# Where so much of that share is left after dropping, others hold it.
_CROWDED = 0.75

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

    def __call__(self, arrays: list[Any]) -> Any:
        values = self.jitted(arrays)
        found = list(self._constants)
        for place, value in zip(self._places, values, strict=True):
            found[place] = value
        return jax.tree.unflatten(self._structure, found)


class _Program:
    """A function compiled for every structure of its arguments, known to `PROGRAMS`.

    Arrays are traced, all else is constant. JAX takes options of the compiler only for a program
    that is called from Python, not for one that is traced into another: that is one of
    `equinox.filter_jit`.

    Args:
        few_calls: whether it is called a few times in a run, so that compiling it is what it costs,
            whatever its size.
        some_calls: whether it is called some ten times, so that compiling it is what it costs up to
            a size ten times that of others.
        hessian: whether one of its calls takes a Hessian, as many gradients as there are weights.
        many_steps: whether one call makes so many steps that running it is what it costs.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        few_calls: bool = False,
        some_calls: bool = False,
        hessian: bool = False,
        many_steps: bool = False,
    ):
        self._function, self._few_calls, self._many_steps = function, few_calls, many_steps
        self._some_calls, self._hessian = some_calls, hessian
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
            result = call(arrays)
        except jax.errors.JaxRuntimeError as error:
            if not chosen or "compile option" not in str(error):
                raise
            call = _Call(self._function, leaves, structure, {})
            result = call(arrays)
        self._calls[key] = call
        return result

    def _options(self, arguments: Any) -> dict[str, Any]:
        if self._many_steps:
            return {}
        if self._few_calls:
            return compiler_options(0)
        work = work_of(arguments) / (CALLED_LESS if self._some_calls else 1)
        return compiler_options(work, work_of(arguments, power=2) if self._hessian else 0)

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
        known = (leaf.shape, leaf.dtype) if eqx.is_array(leaf) else (type(leaf), leaf)
        parts.append(known)
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


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


def compiled(function: _Function) -> _Function:
    """Compiled as by `equinox.filter_jit`, for functions of gflow itself; see the module."""
    return _Program(function)  # pyright: ignore[reportReturnType]


def compiled_for_few_calls(function: _Function) -> _Function:
    """The same for a function that a run or a search calls a few times, as a check or a certificate
    does: on CPU it is compiled fast whatever its size.
    """
    return _Program(function, few_calls=True)  # pyright: ignore[reportReturnType]


def compiled_for_some_calls(function: _Function) -> _Function:
    """The same for a function that a search calls some ten times, as Newton's method does: compiled
    fast up to ten times the size.
    """
    return _Program(function, some_calls=True)  # pyright: ignore[reportReturnType]


def compiled_for_hessians(function: _Function) -> _Function:
    """The same for one that takes a Hessian: optimised a little where that is not tiny."""
    return _Program(function, some_calls=True, hessian=True)  # pyright: ignore[reportReturnType]


def compiled_for_many_steps(function: _Function) -> _Function:
    """The same for a loop of thousands of steps in one call, as of descent: always optimised."""
    return _Program(function, many_steps=True)  # pyright: ignore[reportReturnType]
