"""gflow's compiled programs, and the memory maps that they hold.

XLA maps every kernel of a compiled program into memory by itself: a run on data of a new shape
takes some 500 maps. Linux allows a process 65 530 (`vm.max_map_count`), and where they are spent
LLVM ends the process, with everything that it holds. Therefore gflow drops its own programs

- once the process has spent half of what it may, whatever is in use; and
- where a problem of a new shape is made while no problem of an earlier one is left, unless shapes
  that were dropped have come back: then a caller goes through them in turn, and they are kept.

What is dropped is compiled again when it is called again. Programs of the caller's own stay.

How much the compiler is to optimise is chosen for each program, on CPU, by sizes that are known
before it is compiled, so that no result depends on a clock; see `compiler_options`.
"""

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = Path("/proc/sys/vm/max_map_count")

# The share of the limit that may be spent; a single program takes less than a tenth of the rest.
_SHARE = 0.5

# Where so much of that share is left after dropping, others hold it.
_CROWDED = 0.75

_Function = TypeVar("_Function", bound=Callable[..., Any])


# What makes compiling cheap, for XLA on CPU. The emitters of fused loops go through MLIR, which
# takes most of the time of small programs. In one part instead of up to 32, each a module of LLVM,
# the first limit of 30 examples and 64 weights takes 2.9 instead of 3.7 CPU seconds of compiling,
# and running its programs a tenth less.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# The same with the first level of LLVM's optimisation. A Hessian compiled so takes a third to a
# seventh of the time, nearly as little as with all optimisation.
_FAIRLY_QUICK = _QUICK | {"xla_backend_optimization_level": 1}
# Up to so many examples times weights a program is compiled fast. In CPU seconds on a busy machine,
# 30 examples and 64 weights: the first limit 14 instead of 34, each further one 0.9 instead of
# 0.35, so cheaper for some thirty limits. At 200 and 336 three limits had not ended after 140, and
# between the two nothing was measured: the bound is a cautious one.
_SMALL = 4000
# The same where a process seeks one limit with each program, as `gflow run` does. With 40 examples
# and 520 to 584 weights the 15 limits of its default job take 183 instead of 261 CPU seconds
# together; the slowest of them, under PGD, as long as before.
_SMALL_FOR_ONE = 30_000
# The same for programs that a search calls some ten times, where the flow's take hundreds of steps.
_CALLED_LESS = 10

# Beyond this bound times `_SMALL`, a Hessian's examples times weights squared, it is optimised a
# little. CPU milliseconds of one with none and with little optimisation, under FGM, smoothed ReLU,
# frozen and total gradient: 2 and 7 less at 120 000 (30 examples, 64 weights), 10 and 12 less at
# 620 000 (20, 176). Compiling takes 250 longer, which fifteen calls of the latter pay back.
_SMALL_HESSIAN = 125

# After so many seconds of compiling it is said that it goes on.
NOTICE_SECONDS = 2.0

_LISTENER = threading.local()
_BOUND = ContextVar("_BOUND", default=_SMALL)


@contextlib.contextmanager
def for_one_limit() -> Iterator[None]:
    """Within, programs are compiled to be used for one limit each: fast up to a larger size."""
    token = _BOUND.set(_SMALL_FOR_ONE)
    try:
        yield
    finally:
        _BOUND.reset(token)


@contextlib.contextmanager
def while_compiling(show: Callable[[str | None], None]) -> Iterator[None]:
    """Within, `show(name)` is called once a program of this thread has been compiling for
    `NOTICE_SECONDS`, from another thread, and `show(None)` once it is compiled.
    """
    before = getattr(_LISTENER, "show", None)
    _LISTENER.show = show
    try:
        yield
    finally:
        _LISTENER.show = before


@contextlib.contextmanager
def _noticed(name: str) -> Iterator[None]:
    """Tells the listener of this thread if what is done within, compiling, takes long."""
    show = getattr(_LISTENER, "show", None)
    if show is None:
        yield
        return
    shown = threading.Event()

    def tell() -> None:
        shown.set()
        show(name)

    timer = threading.Timer(NOTICE_SECONDS, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be about to tell
        if shown.is_set():
            show(None)


def compiler_options(work: float, hessian: float = 0) -> dict[str, Any]:
    """Options of the compiler for a program that works on so much: none, or those that make it
    compile fast, where it is small, runs on CPU, and `XLA_FLAGS` says nothing of them.

    Args:
        work: examples times weights, see `work_of`; 0 for a program that runs a few times only.
        hessian: of a program that takes a Hessian, examples times the square of the weights.
    """
    if work > _BOUND.get() or jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    if any(name in flags for name in _QUICK):
        return {}
    return dict(_FAIRLY_QUICK if hessian > _SMALL_HESSIAN * _BOUND.get() else _QUICK)


def work_of(arguments: Any) -> int:
    """How much a program with these arguments works on, from their sizes: the number of examples of
    the problem among them, times the largest array that is none of its data. That is of the size of
    the weights, so the product is nearly the cost of one gradient. Of a table with a row for each
    example, such as the angles of switches at kinks, one row counts; indices do not.
    """
    examples, largest = _sizes_of(arguments)
    return examples * largest


def _sizes_of(arguments: Any) -> tuple[int, int]:
    """The two factors of `work_of`."""
    leaves, _ = jax.tree.flatten(arguments, is_leaf=_is_dataset)
    examples = max((len(leaf.x) for leaf in leaves if _is_dataset(leaf)), default=1)
    arrays = [leaf for leaf in leaves if isinstance(leaf, (np.ndarray, jax.Array))]
    # Of JAX, which knows the types of random keys too.
    arrays = [leaf for leaf in arrays if jax.numpy.issubdtype(leaf.dtype, np.floating)]
    return examples, max((_size_of(leaf, examples) for leaf in arrays), default=1)


def _size_of(array: Any, examples: int) -> int:
    """Of an array, or of one of its rows where there is one for each example."""
    by_example = np.ndim(array) > 1 and len(array) == examples
    return np.size(array) // max(examples, 1) if by_example else np.size(array)


def _is_dataset(node: Any) -> bool:
    # By its name, since data sets stand on a floor above.
    return type(node).__name__ == "Dataset" and hasattr(node, "x")


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
        with _noticed(self.__name__):
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
        examples, largest = _sizes_of(arguments)
        work = examples * largest
        if not self._some_calls:
            return compiler_options(work)
        return compiler_options(work / _CALLED_LESS, work * largest if self._hessian else 0)

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
