"""Whether two values are the same, told by a checksum, in this process or another.

Of arrays every byte counts, of functions the code and what they hold, such as the step size in an
optimizer's `update`; places in memory do not.
"""

import functools
import hashlib
import json
import re
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gflow._checks import on_host

# Where an object lies in memory, which `repr` tells of functions, differs between processes.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def without_addresses(text: str) -> str:
    """`text` without places in memory, so that it is the same in another process."""
    return _ADDRESS.sub("", text)


def checksum_of(header: Any, arrays: Mapping[str, Any]) -> str:
    """SHA-256 of JSON and arrays."""
    found = hashlib.sha256(without_addresses(json.dumps(header, sort_keys=True)).encode())
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of all that `value` is made of; equal for equal values of equal types."""
    arrays: dict[str, np.ndarray] = {}
    return checksum_of(_told(value, arrays, ()), arrays)


def _told(value: Any, arrays: dict[str, np.ndarray], inside: tuple[int, ...]) -> Any:
    """`value` as JSON; its arrays are added to `arrays`.

    Args:
        inside: what `value` is a part of, by `id`: a function may hold itself.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | complex):
        return {"number": repr(complex(value))}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return {"array": _added(value, arrays)}
    if isinstance(value, type):
        return {"type": f"{value.__module__}.{value.__qualname__}"}
    if id(value) in inside:
        return {"again": len(inside) - inside.index(id(value))}

    def told(part: Any) -> Any:
        return _told(part, arrays, (*inside, id(value)))

    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Mapping):
        pairs = sorted(value.items(), key=lambda pair: str(pair[0]))
        return {kind: [[told(key), told(item)] for key, item in pairs]}
    if isinstance(value, tuple | list):
        return {kind: [told(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {kind: sorted(json.dumps(told(item), sort_keys=True) for item in value)}
    if isinstance(value, types.ModuleType):
        return {kind: value.__name__}
    return {kind: [told(part) for part in _parts(value)]}


def _parts(value: Any) -> list[Any]:
    """What an object is made of."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.CodeType):
        code = value.co_code.hex(), value.co_names, value.co_varnames
        return [value.co_qualname, *code, value.co_consts]
    if isinstance(value, types.FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
        return [value.__module__, value.__code__, value.__defaults__, value.__kwdefaults__, held]
    if hasattr(value, "__wrapped__"):  # compiled functions
        return [value.__wrapped__]
    if hasattr(value, "__dict__"):
        return [vars(value)]
    return [without_addresses(repr(value))]


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - a name that is not bound yet has none
    except ValueError:
        return False
    return True


def _added(value: Any, arrays: dict[str, np.ndarray]) -> str:
    name = f"array{len(arrays)}"
    arrays[name] = on_host(value)
    return name
