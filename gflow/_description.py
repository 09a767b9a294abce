"""Descriptions (networks, losses, perturbations, data sets, problems) as JSON and arrays, and back.

A description is an `equinox.Module` of gflow, or a dataclass in one. Its class is written by name
and its fields by value; arrays go to a separate table. Functions cannot be written: what holds one
is not restored.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

# Where descriptions live, those of solvers in `flow`: of no other module a file may name a class.
_HOMES = ("datasets", "flow", "losses", "networks", "perturbations", "problem", "stiff")

# Where classes stood when files of earlier versions were written, and where they stand now.
_MOVED = {
    "gflow.flow.rosenbrock": "gflow.stiff.rosenbrock",
    "gflow.flow.stabilized": "gflow.stiff.chebyshev",
    "gflow.flow.systems": "gflow.stiff.systems",
}


class NotRestorable(Exception):
    """The description holds something that a file cannot, such as a user's function."""


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON; arrays with axes are added to `arrays` and named in their place."""
    if _is_description(type(value)):
        return _encode_module(value, arrays)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _encode_array(np.asarray(value), arrays)
    if isinstance(value, tuple):
        return {"tuple": [encode(item, arrays) for item in value]}
    if isinstance(value, float):
        return {"float": repr(value)}  # JSON has no infinity
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return {"opaque": getattr(value, "__qualname__", repr(value))}


def decode(value: Any, arrays: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        NotRestorable: a function, or a class that gflow does not have.
        Exception: of many kinds, where `value` is not what `encode` made.
    """
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tuple" in value:
        return tuple(decode(item, arrays) for item in value["tuple"])
    if "array" in value:
        return np.asarray(arrays[value["array"]])
    if "number" in value:
        return np.asarray(value["number"], value["dtype"])
    if "class" in value:
        return _decode_module(value, arrays)
    raise NotRestorable(f"`{value.get('opaque', value)}` is not stored in files")


def _is_description(kind: Any) -> bool:
    if not (isinstance(kind, type) and kind.__module__.partition(".")[0] == "gflow"):
        return False
    return issubclass(kind, eqx.Module) or dataclasses.is_dataclass(kind)


def _encode_module(module: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    fields = {name: encode(item, arrays) for name, item in vars(module).items()}
    return {"class": f"{type(module).__module__}:{type(module).__qualname__}", "fields": fields}


def _encode_array(array: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if array.ndim == 0 and np.isfinite(array):
        return {"number": array.item(), "dtype": array.dtype.str}
    name = f"array{len(arrays)}"
    arrays[name] = array
    return {"array": name}


def _decode_module(value: dict[str, Any], arrays: Any) -> Any:
    stored_home, _, class_name = value["class"].partition(":")
    module_name = _MOVED.get(stored_home) or stored_home
    try:
        if module_name.split(".")[0] != "gflow" or module_name.split(".")[1] not in _HOMES:
            raise NotRestorable(f"`{module_name}` is no module of gflow with descriptions")
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise NotRestorable(f"this version of gflow has no {value['class']}") from error
    if not _is_description(kind):
        raise NotRestorable(f"{value['class']} is no description")
    given = value["fields"]
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    # What a later version added has a default, or else what it means here is unknown.
    lacking = [name for name in known if name not in given]
    if set(given) - set(known) or any(known[n] is dataclasses.MISSING for n in lacking):
        raise NotRestorable(f"{value['class']} has other fields in this version of gflow")
    restored = object.__new__(kind)
    for name, default in known.items():
        item = decode(given[name], arrays) if name in given else default
        object.__setattr__(restored, name, item)
    return restored


def encode_structure(tree: Any) -> Any:
    """The skeleton of a pytree of tuples, lists and dicts, with the shapes of its leaves.

    Raises:
        TypeError: another kind of container.
    """
    if isinstance(tree, dict):
        return {"dict": {key: encode_structure(item) for key, item in tree.items()}}
    for kind in (tuple, list):
        if type(tree) is kind:
            return {kind.__name__: [encode_structure(item) for item in tree]}
    if hasattr(tree, "shape"):
        return {"leaf": list(tree.shape)}
    raise TypeError(
        f"parameters of type {type(tree).__name__} cannot be written to a file; use tuples, lists "
        "and dicts of arrays."
    )


def decode_structure(skeleton: Any) -> Any:
    """The inverse of `encode_structure`, with abstract leaves."""
    ((kind, content),) = skeleton.items()
    if kind == "leaf":
        return jax.ShapeDtypeStruct(tuple(content), np.float64)
    if kind == "dict":
        return {key: decode_structure(item) for key, item in content.items()}
    items = [decode_structure(item) for item in content]
    return tuple(items) if kind == "tuple" else items


def plain(value: Any) -> Any:
    """Plain Python values; None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
