"""How a program is compiled: how much it is optimised, who is told, and what waits meanwhile.

On CPU the level is chosen for each program by sizes that are known before it is compiled, so that
no result depends on a clock.
"""

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np

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
CALLED_LESS = 10
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
def noticed(name: str) -> Iterator[None]:
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


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Within, Python does not search for cycles of references. Tracing makes some hundred thousand
    objects, nearly all of which stay: the searches were 8 % of the first limit with programs that
    an earlier process had compiled, and found next to nothing.
    """
    if not gc.isenabled():  # the caller's choice, or another thread is within
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def compiler_options(work: float, hessian: float = 0) -> dict[str, Any]:
    """Options of the compiler for a program that works on so much: none, or those that make it
    compile fast, where it is small, runs on CPU, and `XLA_FLAGS` says nothing of them.

    Args:
        work: examples times weights, see `work_of`; 0 for a program that runs a few times only.
        hessian: the work of the Hessian that a program takes; 0 if it takes none.
    """
    if work > _BOUND.get() or jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    if any(name in flags for name in _QUICK):
        return {}
    return dict(_FAIRLY_QUICK if hessian > _SMALL_HESSIAN * _BOUND.get() else _QUICK)


def work_of(arguments: Any, power: int = 1) -> int:
    """How much a program with these arguments works on, from their sizes: the number of examples of
    the problem among them, times the largest array that is none of its data. That is of the size of
    the weights, so the product is nearly the cost of one gradient. Of a table with a row for each
    example, such as the angles of switches at kinks, one row counts; indices do not.

    Args:
        power: of the size of that array: 2 for the work of a Hessian.
    """
    leaves, _ = jax.tree.flatten(arguments, is_leaf=_is_dataset)
    examples = max((len(leaf.x) for leaf in leaves if _is_dataset(leaf)), default=1)
    arrays = [leaf for leaf in leaves if isinstance(leaf, (np.ndarray, jax.Array))]
    # Of JAX, which knows the types of random keys too.
    arrays = [leaf for leaf in arrays if jax.numpy.issubdtype(leaf.dtype, np.floating)]
    return examples * max((_size_of(leaf, examples) for leaf in arrays), default=1) ** power


def _size_of(array: Any, examples: int) -> int:
    """Of an array, or of one of its rows where there is one for each example."""
    by_example = np.ndim(array) > 1 and len(array) == examples
    return np.size(array) // max(examples, 1) if by_example else np.size(array)


def _is_dataset(node: Any) -> bool:
    # By its name, since data sets stand on a floor above.
    return type(node).__name__ == "Dataset" and hasattr(node, "x")
