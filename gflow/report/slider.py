"""The slider of an explorer's page: its places in time, and the graph of the margins over them."""

from typing import Any

import numpy as np

from gflow.report.axes import LOG10, power_of_ten
from gflow.report.clocks import LAST_DECADE
from gflow.report.drawing import marks, polyline
from gflow.trajectory import Trajectory

# Places over decades of time, and beyond them.
_NEAR, _BEYOND = 48, 16
# From where the direction has moved so far on, time is told apart.
_MOVED = 0.01
# Left, right, upper and lower edge of the graph of the margins.
_GRAPH = (46.0, 468.0, 12.0, 132.0)
# Its marks are at least so far apart.
_APART = 34.0


def places_on(trajectory: Trajectory) -> np.ndarray:
    """Saved points evenly spread over the slider: the start, then log t, then log(-log loss)."""
    near, far = _clocks(trajectory)
    moved = np.linalg.norm(trajectory.vectors - trajectory.vectors[0], axis=1) > _MOVED
    chosen = [0, len(trajectory) - 1]
    for clock, count in ((np.where(moved, near, np.nan), _NEAR), (far, _BEYOND)):
        points = np.flatnonzero(np.isfinite(clock))
        if len(points):
            wanted = np.linspace(clock[points[0]], clock[points[-1]], count)
            nearest = np.abs(clock[points][:, None] - wanted).argmin(axis=0)
            chosen += points[nearest].tolist()
    return np.unique(chosen)


def _clocks(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """log10 t where that is a number that a reader knows, beyond log10(-log loss); else NaN."""
    log1p = np.asarray(trajectory.log1p_time)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = (log1p + np.log(-np.expm1(-log1p))) / LOG10
    inside = near <= LAST_DECADE
    far = np.asarray(trajectory.log_minus_log_loss) / LOG10
    return np.where(inside & np.isfinite(near), near, np.nan), np.where(inside, np.nan, far)


def texts(trajectory: Trajectory, places: np.ndarray, *, has_limit: bool) -> list[dict[str, str]]:
    """Time and loss of every frame in words."""
    texts = [
        {
            "clock": f"t = {_power(float(trajectory.log1p_time[place]))}",
            "loss": loss_in_words(float(trajectory.log_loss[place])),
        }
        for place in places
    ]
    return texts + ([{"clock": "the limit, t = ∞", "loss": "0"}] if has_limit else [])


def loss_in_words(logarithm: float) -> str:
    """The loss of a natural logarithm, if a reader knows such numbers; else as a power of e."""
    if abs(logarithm) < 7:
        return f"{np.exp(logarithm):.3g}"
    return f"e^{logarithm:.4g}".replace("-", "−")


def _power(log1p_time: float) -> str:
    """The time t of log(1 + t), as a number or a power of e."""
    if not np.isfinite(log1p_time):
        return "beyond the cap of the temperature"
    if log1p_time <= LAST_DECADE * LOG10:
        return f"{np.expm1(log1p_time):.3g}"
    return f"e^{log1p_time:.4g}"


def graph_of(
    trajectory: Trajectory, places: np.ndarray, least: np.ndarray, *, has_limit: bool
) -> dict[str, Any]:
    """The margins over the slider's places: lines, marks, and where the second clock begins."""
    clean = np.asarray(trajectory.clean_margin)[places]
    top = max(float(least.max()), float(clean.max()))
    low = max(min(float(least.min()), 0.0), -0.3 * abs(top))
    left, right, up, down = _GRAPH
    x = left + (right - left) * np.arange(len(least)) / max(len(least) - 1, 1)

    def height(values: Any) -> Any:
        inside = np.clip(values, low, None)
        return down - (down - up) * (inside - low) / ((top - low) or 1.0)

    near, far = (clock[places] for clock in _clocks(trajectory))
    beyond = np.flatnonzero(np.isfinite(far))
    return {
        "x": [round(value, 1) for value in x.tolist()],
        "margin": polyline(x[: len(places)], height(least[: len(places)])),
        "clean": polyline(x[: len(places)], height(clean)),
        "limit": float(height(least[-1])) if has_limit else None,
        "marks_up": [(float(height(v)), text) for v, text in marks(low, top, 4)],
        "marks": _decades(x, near, far),
        "beyond": float(x[beyond[0]]) if len(beyond) else None,
        "edges": _GRAPH,
    }


def _decades(x: np.ndarray, near: np.ndarray, far: np.ndarray) -> list[tuple[float, str]]:
    """Where the clocks of the graph pass powers of ten, as far as there is room for them."""
    found: list[tuple[float, str]] = []
    for clock, most in ((near, 5), (far, 3)):
        at = np.flatnonzero(np.isfinite(clock))
        if len(at) < 2:
            continue
        first, last = float(clock[at[0]]), float(clock[at[-1]])
        step = max(1, int(np.ceil((last - first) / most)))
        for power in np.arange(np.ceil(first / step) * step, last + 1e-9, step):
            place = float(np.interp(power, clock[at], x[at]))
            if not found or place - found[-1][0] > _APART:
                text = f"{10**power:.0f}" if 0 <= power < 4 else power_of_ten(float(power))
                found.append((place, text))
    return found
