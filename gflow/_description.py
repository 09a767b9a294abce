"""Descriptions (networks, losses, perturbations, data sets, problems) as JSON and arrays, and back.

A description is a class declared by `storable`: its name is written, and its fields by value;
arrays go to a separate table. The name is chosen once and stays, wherever the class moves and
whatever it is called. Functions cannot be written: what holds one is not restored.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

_Class = TypeVar("_Class", bound=type)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A class that files hold.

    Attributes:
        name: in files.
        made: the class.
        former_fields: names of fields in files of earlier versions, and what they are called now.
    """

    name: str
    made: type
    former_fields: Mapping[str, str]


_KINDS: dict[str, _Kind] = {}
# By the class itself: a user's subclass is another class, and has no name here.
_NAMES: dict[type, str] = {}


def storable(
    name: str, *, former_fields: Mapping[str, str] | None = None
) -> Callable[[_Class], _Class]:
    """A class decorator: files hold instances of the class under this name.

    The class is an `equinox.Module` or a dataclass. Its fields are restored without a call of its
    constructor; a field that files do not have yet needs a default. A file is read where the module
    of the class has been imported: `gflow.loading` imports them all.

    Args:
        name: unique, and never to be changed or used again for something else.
        former_fields: see above; fields that were renamed.

    Raises:
        ValueError: another class has this name.
    """

    def declare(kind: _Class) -> _Class:
        known = _KINDS.get(name)
        if known is not None and known.made.__qualname__ != kind.__qualname__:
            raise ValueError(
                f"`storable({name!r})`: {kind.__qualname__} and {known.made.__qualname__} cannot "
                "have one name in files."
            )
        _KINDS[name] = _Kind(name, kind, former_fields or {})
        _NAMES[kind] = name
        return kind

    return declare


def stored_name(kind: type) -> str | None:
    """The name of a class in files; None for one that files do not hold."""
    return _NAMES.get(kind)


class NotRestorable(Exception):
    """The description holds something that a file cannot, such as a user's function."""


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON; arrays with axes are added to `arrays` and named in their place."""
    name = stored_name(type(value))
    if name is not None:
        fields = {field: encode(item, arrays) for field, item in vars(value).items()}
        return {"class": name, "fields": fields}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _encode_array(np.asarray(value), arrays)
    if isinstance(value, tuple):
        return {"tuple": [encode(item, arrays) for item in value]}
    if isinstance(value, float):
        return {"float": repr(value)}  # JSON has no infinity
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return {"opaque": getattr(value, "__qualname__", repr(value))}


def decode(value: Any, arrays: Any, like: Any = None) -> Any:
    """The inverse of `encode`.

    Args:
        like: a value of the same build, from which functions are taken, which files do not hold.

    Raises:
        NotRestorable: a function, or a class that gflow does not have.
        Exception: of many kinds, where `value` is not what `encode` made.
    """
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tuple" in value:
        items = value["tuple"]
        alike = isinstance(like, tuple) and len(like) == len(items)
        parts = like if alike else [None] * len(items)
        return tuple(decode(i, arrays, part) for i, part in zip(items, parts, strict=True))
    if "array" in value:
        return np.asarray(arrays[value["array"]])
    if "number" in value:
        return np.asarray(value["number"], value["dtype"])
    if "class" in value:
        return _decode_module(value, arrays, like)
    if like is not None and "opaque" in value:
        return like
    raise NotRestorable(f"`{value.get('opaque', value)}` is not stored in files")


def _encode_array(array: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if array.ndim == 0 and np.isfinite(array):
        return {"number": array.item(), "dtype": array.dtype.str}
    name = f"array{len(arrays)}"
    arrays[name] = array
    return {"array": name}


def _decode_module(value: dict[str, Any], arrays: Any, like: Any) -> Any:
    kind = _kind_of(value["class"])
    like = like if type(like) is kind.made else None
    given = {kind.former_fields.get(name, name): item for name, item in value["fields"].items()}
    known = {field.name: field.default for field in dataclasses.fields(kind.made)}
    # What a later version added has a default, or else what it means here is unknown.
    lacking = [name for name in known if name not in given]
    if set(given) - set(known) or any(known[n] is dataclasses.MISSING for n in lacking):
        raise NotRestorable(f"{value['class']} has other fields in this version of gflow")
    restored = object.__new__(kind.made)
    for name, default in known.items():
        part = getattr(like, name, None)
        item = decode(given[name], arrays, part) if name in given else default
        object.__setattr__(restored, name, item)
    return restored


def _kind_of(stored: str) -> _Kind:
    """The class of this name; files of format 1 say `module:Class`, wherever that stood then.

    The names of these classes are what they were called then.
    """
    home, _, name = stored.rpartition(":")
    if home and home.partition(".")[0] != "gflow":
        raise NotRestorable(f"`{stored}` is no class of gflow")
    if name not in _KINDS:
        raise NotRestorable(f"this version of gflow has no {stored}")
    return _KINDS[name]


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


def shown(module: eqx.Module) -> str:
    """`repr` of a module, with its numbers: Equinox shows of every array its shape alone.

    Two attacks of different radii are then told apart, by a reader and where a value is named.
    """

    def number(leaf: Any) -> Any:
        plain = isinstance(leaf, np.ndarray | np.generic) and leaf.ndim == 0
        return leaf.item() if plain else leaf

    return eqx.tree_pformat(jax.tree.map(number, module))
