"""Limits and states of a search as JSON and arrays, and back, value for value.

Each is a tree of frozen records. A record is written by a name that never changes and by its
fields. Arrays go into a table, and equal arrays are stored once, since the runs of a sweep share
their data.
"""

import contextlib
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gflow._description import NotRestorable, decode, encode
from gflow.kkt.certificate import Certificate
from gflow.kkt.curvature import Curvature
from gflow.kkt.point import KKTPoint
from gflow.kkt.system import KKTSystem, SwitchBlocks
from gflow.limit.approach import Run
from gflow.limit.basin import Handover
from gflow.limit.itinerary import Visit
from gflow.limit.result import Limit, Stage
from gflow.limit.state import Cap, Flow, Found, State
from gflow.loading import trajectory_from
from gflow.problem import Problem
from gflow.results import NAMES, RESULTS, name_of
from gflow.stored import parts
from gflow.trajectory import Trajectory

_KINDS: dict[str, Any] = {
    "Limit": Limit,
    "Stage": Stage,
    "Certificate": Certificate,
    "Curvature": Curvature,
    "KKTPoint": KKTPoint,
    "KKTSystem": KKTSystem,
    "SwitchBlocks": SwitchBlocks,
    "Visit": Visit,
    "State": State,
    "Cap": Cap,
    "Flow": Flow,
    "Found": Found,
    "Handover": Handover,
    "Run": Run,
}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}


class Arrays:
    """The arrays of a file, by name; each content is there once."""

    def __init__(self):
        self.table: dict[str, np.ndarray] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def add(self, array: Any) -> str:
        """The name under which `array` is kept."""
        array = np.asarray(array)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        key = array.dtype.str, array.shape, digest
        if key not in self._names:
            self._names[key] = f"a{len(self.table)}"
            self.table[self._names[key]] = array
        return self._names[key]


def put(value: Any, arrays: Arrays) -> Any:
    """`value`, a limit or a part of one, as JSON; its arrays are added to `arrays`."""
    name = _KIND_NAMES.get(type(value))
    if name is not None:
        # Of a named tuple, or of a dataclass.
        fields: dict[str, Any] = getattr(value, "_asdict", lambda: vars(value))()
        return {"kind": name, "fields": {key: put(item, arrays) for key, item in fields.items()}}
    match value:
        case None | bool() | str():
            return value
        case Trajectory():
            header, table = parts(value)
            return {"trajectory": header, "arrays": _kept(table, arrays)}
        case Problem():
            table = {}
            return {"problem": encode(value, table), "arrays": _kept(table, arrays)}
        case np.ndarray() | np.generic() | jax.Array():
            told = {"array": arrays.add(value), "scalar": isinstance(value, np.generic)}
            return {**told, "jax": True} if isinstance(value, jax.Array) else told
        case int():
            return value
        case float():
            return {"float": repr(value)}  # JSON has neither NaN nor infinity
        case tuple() | list():
            return {type(value).__name__: [put(item, arrays) for item in value]}
        case dict():
            return {"dict": [[put(key, arrays), put(item, arrays)] for key, item in value.items()]}
    if isinstance(value, RESULTS):
        return {"result": name_of(value)}
    raise TypeError(f"a {type(value).__name__} cannot be written to a file")


def put_all(value: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """`value` as JSON, and all its arrays."""
    arrays = Arrays()
    return put(value, arrays), arrays.table


def _kept(table: dict[str, Any], arrays: Arrays) -> dict[str, str]:
    """The names of a table's arrays in the file."""
    return {name: arrays.add(array) for name, array in table.items()}


def get(value: Any, arrays: dict[str, np.ndarray], problem: Problem | None = None) -> Any:
    """The inverse of `put`.

    Args:
        problem: in place of one that the file could not hold, as with a user's own network.

    Raises:
        NotRestorable: the file holds no problem, and `problem` is None.
        Exception: of many kinds, where `value` is not what `put` made.
    """
    if not isinstance(value, dict):
        return value
    if "kind" in value:
        kind, fields = _KINDS[value["kind"]], value["fields"]
        return kind(**{key: get(item, arrays, problem) for key, item in fields.items()})
    if "trajectory" in value:
        return _trajectory(value, arrays, problem)
    if "problem" in value:
        return decode(value["problem"], _named(value, arrays)) if problem is None else problem
    if "array" in value:
        array = arrays[value["array"]]
        if value.get("jax"):  # an array of JAX, whose operations round otherwise than NumPy's
            return jnp.asarray(array)
        return array[()] if value["scalar"] else array
    if "float" in value:
        return float(value["float"])
    if "result" in value:
        return getattr(RESULTS, NAMES[NAMES.index(value["result"])])
    ((kind, items),) = value.items()
    if kind == "dict":
        return {get(key, arrays): get(item, arrays, problem) for key, item in items}
    return {"tuple": tuple, "list": list}[kind](get(item, arrays, problem) for item in items)


def _trajectory(
    value: dict[str, Any], arrays: dict[str, np.ndarray], problem: Problem | None
) -> Trajectory:
    """A trajectory with its own problem, which differs from `problem` where kinks were rounded. The
    parts of it that a file cannot hold are taken from `problem`.
    """
    found = trajectory_from(value["trajectory"], _named(value, arrays), None)
    if found.problem is not None or problem is None:
        return found
    named, header = _named(value, arrays), value["trajectory"]
    with contextlib.suppress(NotRestorable):  # another build of problem
        problem = decode(header["problem"], named, problem)
    return trajectory_from(header, named, problem)


def _named(value: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: arrays[kept] for name, kept in value["arrays"].items()}
