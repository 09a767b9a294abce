"""A trajectory as a header and arrays, and back: what its file holds, and what must be true of it.

Another field of a trajectory goes into `parts`, `restored`, and a check of its own.
"""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from gflow._archive import Damaged
from gflow._description import (
    NotRestorable,
    decode,
    decode_structure,
    encode,
    encode_structure,
)
from gflow._layout import Layout
from gflow.checkpoint import Checkpoint
from gflow.datasets import Dataset
from gflow.networks import AbstractNetwork, Custom
from gflow.problem import Problem
from gflow.record import COLUMNS
from gflow.results import NAMES, RESULTS

FORMAT = 2
"""Of format 1, the classes of a problem and of its solver are written as `module:Class`."""
_READABLE = (1, FORMAT)

_NAMED = ("kind", "result", "stats", "settings", "structure", "problem")
_KINDS = ("flow", "descent", "modified flow")
_COLUMN = "column_"

# Others need not be: far out the loss leaves the range of numbers, and a capped flow has no time.
_FINITE = ("num_steps_at", "log_norm", "log_kappa")

# |u| is 1 to rounding, which grows with the number of parameters; a wrong one is off by far more.
_UNIT = 1e-6


class Stored(NamedTuple):
    """What a file holds of a trajectory; the fields are those of `Trajectory`."""

    kind: str
    columns: dict[str, np.ndarray]
    vectors: np.ndarray
    layout: Layout
    problem: Problem | None
    result: RESULTS
    stats: dict[str, Any]
    settings: dict[str, Any]
    checkpoint: Checkpoint | None


def parts(trajectory: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a trajectory's file."""
    arrays: dict[str, np.ndarray] = {}
    header = {
        "format": FORMAT,
        "kind": trajectory.kind,
        "result": trajectory.result_name,
        "stats": dict(trajectory.stats),
        "settings": dict(trajectory.settings),
        "structure": encode_structure(trajectory.direction),
        "problem": encode(trajectory.problem, arrays),
    }
    if trajectory.checkpoint is not None:
        header["checkpoint"] = trajectory.checkpoint.encode(arrays)
    columns = {f"{_COLUMN}{name}": values for name, values in trajectory.columns.items()}
    return header, {"vectors": trajectory.vectors, **columns, **arrays}


def restored(
    header: dict[str, Any], arrays: dict[str, np.ndarray], problem: Problem | None
) -> Stored:
    """The fields of a trajectory, checked; `problem` in place of a stored one, if it is given.

    Raises:
        Damaged: a field is missing, of another kind or shape, or cannot be that of a run.
    """
    if header.get("format") not in _READABLE:
        raise Damaged(f"format {header.get('format')} is unknown to this version")
    for name in _NAMED:
        if name not in header:
            raise Damaged(f"its header has no `{name}`")
    kind, result = header["kind"], header["result"]
    if kind not in _KINDS or result not in NAMES:
        raise Damaged(f"it is a {kind!r} that ended {result!r}, neither of which gflow knows")
    layout = _layout(header["structure"])
    columns, vectors = _columns(arrays), _vectors(arrays, layout)
    if {len(values) for values in columns.values()} != {len(vectors)}:
        raise Damaged("its columns have not as many points as there are directions")
    return Stored(
        kind,
        columns,
        vectors,
        layout,
        _problem(header["problem"], arrays, layout) if problem is None else problem,
        getattr(RESULTS, result),
        _checked_stats(header["stats"]),
        _checked_settings(header["settings"], kind),
        Checkpoint.decode(header.get("checkpoint"), arrays),
    )


def _layout(skeleton: Any) -> Layout:
    layout = Layout.of(decode_structure(skeleton))
    if not all(_is_count(length) for shape in layout.shapes for length in shape):
        raise Damaged("the shapes of its parameters are none")
    if not layout.size:
        raise Damaged("it has no parameters")
    return layout


def _vectors(arrays: dict[str, np.ndarray], layout: Layout) -> np.ndarray:
    vectors = arrays.get("vectors")
    if vectors is None or vectors.ndim != 2 or vectors.shape[1] != layout.size:
        raise Damaged("its directions are missing, or have not as many entries as parameters")
    if vectors.dtype != np.float64 or not len(vectors):
        raise Damaged("its directions are no float64 numbers, or none")
    lengths = np.linalg.norm(vectors, axis=1) if np.max(np.abs(vectors)) <= 2 else np.nan
    if not np.all(np.abs(lengths - 1) <= _UNIT):
        raise Damaged("its directions are no unit vectors")
    return vectors


def _columns(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns = {name: arrays.get(f"{_COLUMN}{name}") for name in COLUMNS}
    for name, values in columns.items():
        if values is None or values.ndim != 1 or values.dtype.kind not in "if":
            raise Damaged(f"its column `{name}` is missing, or no list of numbers")
        if name in _FINITE and not np.all(np.isfinite(values)):
            raise Damaged(f"its column `{name}` is not finite")
    steps = columns["num_steps_at"]
    assert steps is not None
    if steps.dtype.kind != "i" or np.any(steps < 0) or np.any(np.diff(steps) < 0):
        raise Damaged("its steps do not count up")
    return {name: values for name, values in columns.items() if values is not None}


def _problem(encoded: Any, arrays: dict[str, np.ndarray], layout: Layout) -> Problem | None:
    try:
        problem = decode(encoded, arrays)
    except NotRestorable:
        return None
    if not isinstance(problem, Problem):
        raise Damaged("its problem is of another kind")
    _check_values(problem)
    check_fits(problem, layout)
    return problem


def _check_values(problem: Problem) -> None:
    """What the constructors checked when the description was first built."""
    if problem.gradient_mode not in ("frozen", "total"):
        raise Damaged("its problem has an unknown gradient mode")
    given = problem.dataset
    if Dataset(given.x, given.y).num_classes != given.num_classes:
        raise Damaged("its labels are not of as many classes as it says")
    numbers = [np.asarray(leaf) for leaf in jax.tree.leaves(problem)]
    if not all(leaf.dtype.kind in "fiu" and np.all(np.isfinite(leaf)) for leaf in numbers):
        raise Damaged("its problem holds what is no finite number")
    if problem.perturbation.radius < 0:
        raise Damaged("its radius is negative")


def check_fits(problem: Problem, layout: Layout) -> None:
    """Raises ValueError unless the problem has margins and a loss at parameters of this layout.

    Nothing is computed. Where JAX has no float64 nothing can be, and this waits until it has.
    """
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return
    leaves, structure = jax.tree.flatten(problem)
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves)
    misfit = _misfit(structure, shapes, layout.structure, tuple(layout.shapes))
    if misfit:
        raise ValueError(misfit)


# Of a file with many runs nearly all are alike, and tracing takes most of the time of reading one.
@functools.lru_cache(maxsize=256)
def _misfit(structure: Any, shapes: tuple, of_params: Any, layout: tuple) -> str:
    """Why problems of these shapes have no loss at parameters of this layout; empty if they do."""
    problem: Problem = jax.tree.unflatten(structure, shapes)
    wrong = _wrong_weights(problem.network, layout)
    if wrong:
        return wrong
    leaves = [jax.ShapeDtypeStruct(shape, np.float64) for shape in layout]
    params = jax.tree.unflatten(of_params, leaves)

    def evaluated(problem: Problem, params: Any) -> Any:
        return problem.margins(params), problem.log_loss(params)

    try:
        margins, loss = eqx.filter_eval_shape(evaluated, problem, params)
    except Exception as error:
        return f"there are no margins at the parameters stored: {error}"
    others = () if problem.dataset.binary else (problem.dataset.num_classes - 1,)
    if margins.shape != (len(problem.dataset), *others) or loss.shape:
        return "there are other margins than the labels need"
    return ""


def _wrong_weights(network: AbstractNetwork, layout: tuple) -> str:
    """A network of gflow's own makes its parameters, and so says how they lie."""
    if isinstance(network, Custom) or not type(network).__module__.startswith("gflow."):
        return ""
    own = Layout.of(eqx.filter_eval_shape(lambda network: network.init(0), network))
    # The containers may differ: a list of matrices does as well as a tuple.
    if own.shapes == layout:
        return ""
    return f"the network has parameters of shapes {own.shapes}, those stored are {layout}"


def _checked_stats(stats: Any) -> dict[str, Any]:
    steps = stats.get("num_steps") if isinstance(stats, dict) else None
    if not _is_count(steps) or not _is_count(stats.get("stiff_from") or 0):
        raise Damaged("its counts are missing, or no counts")
    return stats


def _checked_settings(settings: Any, kind: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise Damaged("its settings are of another kind")
    if kind != "flow":
        return settings
    given = {name: settings.get(name) for name in ("tolerance", "atol_logit")}
    # Files of earlier versions have one tolerance for all.
    given["rtol_direction"] = settings.get("rtol_direction", given["tolerance"])
    cap = settings.get("kappa_cap")
    given["kappa_cap"] = 1.0 if cap is None else cap
    for name, value in given.items():
        if not _is_positive(value):
            raise Damaged(f"its setting `{name}` is missing, or not positive")
    if not isinstance(settings.get("solver"), str):
        raise Damaged("it names no solver")
    return settings


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0
