"""Names of compiled programs that mean the same in every process.

A name is a digest of all that tracing and compiling read: the function, its arguments' structure
with every constant in it, the shapes of arrays, the settings of JAX and of the compiler, the
versions of the libraries, and the source of gflow. Where anything among the arguments may mean
something else in another process, such as a network that the user has written, there is no name.
"""

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
import types
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Functions and classes of these are known by their names, since their versions, or for gflow the
# source, are part of every name.
_LIBRARIES = ("jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "optax", "numpy")
_KNOWN = {"gflow", "builtins", "functools", *_LIBRARIES}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Of JAX's settings these do not change what is compiled: folders, sizes and words.
_IRRELEVANT = ("_cache", "_log", "traceback")
# With one of these JAX does not run a program as it was compiled.
_CHECKING = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit")


class _Unknown(Exception):
    """A value that may mean something else in another process."""


def program_name(function: Any, arguments: Any, options: dict[str, Any]) -> str | None:
    """The name of a function's program for these arguments; None where it has none.

    Args:
        function: one of gflow's, known by its module and name; it may be compiled there.
        arguments: a pytree. Of its arrays the shapes and types count, of all else the values.
        options: of the compiler.
    """
    if not _as_compiled():
        return None
    try:
        parts = (
            _address(function, _pure),
            _described(arguments),
            _described(options),
            _environment(),
        )
    except (_Unknown, RecursionError):
        return None
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _as_compiled() -> bool:
    """Whether programs are for one processor of this process, and run as they were compiled. On
    other devices compiling takes longer than tracing, and JAX's cache is as good.
    """
    config = jax.config
    return (
        jax.default_backend() == "cpu"
        and jax.process_count() == 1
        and getattr(config, "jax_default_device", None) is None
        and jax.sharding.get_abstract_mesh().empty
        and not any(getattr(config, name) for name in _CHECKING)
    )


def _described(value: Any) -> Hashable:
    """The value in tuples of text, such that unlike values have unlike descriptions.

    Raises:
        _Unknown: it cannot be told what the value means elsewhere.
    """
    if type(value) in _PLAIN:
        return type(value).__name__, repr(value)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array_described(value)
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return "object", _address(value)
    if isinstance(value, types.MethodType):
        return "method", _described(value.__self__), value.__func__.__name__
    if isinstance(value, functools.partial):  # and those of JAX, which are pytrees
        parts = value.func, value.args, value.keywords
        return _address(type(value)), *map(_described, parts)
    if isinstance(value, jax.tree_util.PyTreeDef):
        return "structure", _described(jax.tree.unflatten(value, [0] * value.num_leaves))
    if isinstance(value, enum.Enum):
        return _address(type(value)), value.name
    return _container_described(value)


def _array_described(array: Any) -> Hashable:
    """Of an array whose values do not count. One that stands on other devices than the first makes
    a program for those.
    """
    if isinstance(array, jax.Array) and array.devices() != {jax.devices()[0]}:
        raise _Unknown
    return "array", array.shape, str(array.dtype), bool(getattr(array, "weak_type", False))


def _container_described(value: Any) -> Hashable:
    """Of something that holds other values, or is known by its name."""
    kind = type(value)
    if isinstance(value, tuple | list) and (kind in (tuple, list) or hasattr(kind, "_fields")):
        return _address(kind), *map(_described, value)
    if isinstance(value, dict) and kind is dict:
        return "dict", *((_described(key), _described(one)) for key, one in value.items())
    if dataclasses.is_dataclass(value):
        return _address(kind), *_fields_described(value)
    return "object", _address(value)


def _fields_described(value: Any) -> list[Hashable]:
    """Of a dataclass; what else an instance holds would not be seen.

    An array in a field that is static is a constant of the program, and not described here.
    """
    fields = dataclasses.fields(value)
    if not set(getattr(value, "__dict__", ())) <= {field.name for field in fields}:
        raise _Unknown
    described = []
    for field in fields:
        content = getattr(value, field.name, None)
        static = field.metadata.get("static", False)
        if static and isinstance(content, (np.ndarray, np.generic, jax.Array)):
            raise _Unknown
        described.append((field.name, hasattr(value, field.name), _described(content)))
    return described


def _pure(function: Any) -> Any:
    """What a compiled function was made of."""
    return getattr(function, "__wrapped__", function)


def _address(value: Any, as_found: Callable[[Any], Any] = lambda found: found) -> str:
    """Module and name of something that any process finds there, or finds it as `as_found` of it.

    Raises:
        _Unknown: another process may find something else, or nothing.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Unknown
    if module.partition(".")[0] not in _KNOWN:
        raise _Unknown
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if as_found(found) is not value:
        raise _Unknown
    return f"{module}.{name}"


def _environment() -> Hashable:
    """What besides the arguments decides how a function is traced and compiled."""
    device = jax.devices()[0]
    names = sorted(jax.config.values)
    settings = [
        (name, repr(getattr(jax.config, name, None)))
        for name in names
        if not any(word in name for word in _IRRELEVANT)
    ]
    machine = device.device_kind, device.id, device.client.platform_version, jax.device_count()
    return tuple(settings), machine, os.environ.get("XLA_FLAGS", ""), _versions()


@functools.cache
def _versions() -> Hashable:
    """Of Python, of the libraries, and a digest of the source of gflow."""
    source = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        source.update(f"{file.relative_to(folder)} {len(content)}\n".encode() + content)
    versions = tuple(importlib.metadata.version(library) for library in _LIBRARIES)
    return platform.python_version(), versions, source.hexdigest()
