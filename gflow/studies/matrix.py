"""The matrix: trained under (rows) x attacked by (columns), over several starts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import squared_relu
from gflow.studies.study import Comparison, Finding, Measurement, Study
from gflow.studies.style import GREY, panels

_SEEDS, _FULL_SEEDS = range(4), range(12)
_FEWEST = 3
_RADII, _FULL_RADII = (0.0, 0.1, 0.25), (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
# Close to the radius, about 0.43, from which on these starts no longer separate the data.
_MASKED_RADII, _FULL_MASKED_RADII = (0.4, 0.42), (0.3, 0.36, 0.38, 0.4, 0.41, 0.42, 0.43)


def _measure(small: bool) -> Measurement:
    seeds = _SEEDS if small else _FULL_SEEDS
    radii = _RADII if small else _FULL_RADII
    by_seed = [[_row(trained, seed, radii) for trained in radii] for seed in seeds]
    table = np.array([rows for rows in by_seed if all(row is not None for row in rows)])
    masked_radii = _MASKED_RADII if small else _FULL_MASKED_RADII
    masked = [(radius, *pair) for radius in masked_radii for pair in _own(radius, seeds)]
    findings = (
        Finding(
            f"starts of {len(seeds)} that reach a limit in every row",
            *(_FEWEST, len(table), 0.0, "at least"),
        ),
        *_of_margins(table, f"ε = {radii[-1]:g}"),
        Finding(
            f"of {len(masked)} limits near the largest radius, those with a margin under their own "
            "attack and none under a strong one",
            *(1, sum(own > 0 >= found for _, own, found in masked), 0.0, "at least"),
        ),
    )
    weak, strong = table[..., 0], table[..., 1]
    data = {"radii": radii, "weak": weak, "strong": strong[..., -1:], "masked": masked}
    return Measurement(findings, data)


def _of_margins(table: np.ndarray, where: str) -> tuple[Finding, ...]:
    """What the matrix shows. Shape (starts, trained under, attacked by, weak and strong)."""
    weak, strong = table[..., 0], table[..., 1]
    best = weak.mean(axis=0).argmax(axis=0) == np.arange(table.shape[1])
    gain = (weak[:, -1, -1] - weak[:, 0, -1]).min()
    strong_gain = (strong[:, -1, -1] - strong[:, 0, -1]).min()
    cost = (weak[:, 0, 0] - weak[:, -1, 0]).min()
    found: tuple[tuple[str, float, float, Comparison], ...] = (
        ("columns whose largest mean stands on the diagonal", len(best), best.sum(), "difference"),
        (f"margin under {where}: smallest gain over clean training", 0, gain, "at least"),
        (f"the same under strong attacks of {where}", 0, strong_gain, "at least"),
        (f"clean margin: smallest lead of clean training over {where}", 0, cost, "at least"),
    )
    return tuple(Finding(what, goal, float(value), 0.0, how) for what, goal, value, how in found)


def _row(trained: float, seed: int, radii: tuple[float, ...]) -> list[tuple[float, float]] | None:
    """The margins under FGM and under strong attacks of every radius; None without a limit."""
    problem = squared_relu(trained, "frozen")
    limit = gflow.find_limit(problem, problem.network.init(seed), throw=False)
    if not limit.successful:
        return None
    found = [gflow.certify(squared_relu(radius, "frozen"), limit.direction) for radius in radii]
    return [(float(one.normalized_margin), float(one.strong_margin)) for one in found]


def _own(radius: float, seeds: range) -> list[tuple[float, float]]:
    """The margins of the limits of training at that radius, under the same radius."""
    rows = [_row(radius, seed, (radius,)) for seed in seeds]
    return [row[0] for row in rows if row is not None]


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    _draw_matrix(left, data)
    masked = data["masked"]
    radii = np.array([radius for radius, _, _ in masked])
    right.plot(radii, [own for _, own, _ in masked], "o", label="FGM, as trained")
    right.plot(radii, [found for _, _, found in masked], "x", label="strong attack")
    right.axhline(0.0, **GREY)
    right.set(xlabel="radius of training and attack", ylabel="normalized margin")
    right.set_xticks(sorted(set(radii)))
    right.margins(x=0.3)
    right.legend()
    return figure


def _draw_matrix(axes: Any, data: Mapping[str, Any]) -> None:
    names = ["clean" if radius == 0 else f"FGM\n{radius:g}" for radius in data["radii"]]
    values = np.concatenate([data["weak"], data["strong"]], axis=2)
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    # Shades within a column: columns of different attacks are not compared.
    shade = (mean - mean.min(axis=0)) / np.ptp(mean, axis=0)
    axes.imshow(shade, cmap="Greys", vmin=-0.2, vmax=2.5, aspect="auto")
    for row, column in np.ndindex(mean.shape):
        best = row == mean[:, column].argmax()
        axes.text(
            column,
            row,
            f"{mean[row, column]:.4f}\n± {spread[row, column]:.4f}",
            ha="center",
            va="center",
            color="black",
            fontsize=7.5,
            fontweight="bold" if best else "normal",
        )
    axes.set_xticks(range(len(names) + 1), [*names, f"strong\n{data['radii'][-1]:g}"])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="x", labelsize=8)
    axes.set(xlabel="attacked by", ylabel="trained under")
    axes.grid(visible=False)


STUDY = Study(
    name="matrix",
    title="Trained under x attacked by: who withstands what",
    claim="At the limits, training under an attack has the larger margin under that attack, and "
    "clean training the larger clean margin. Near the largest radius that training withstands the "
    "margin under the attack of training can be positive where a stronger attack of the same "
    "radius leaves none: the perturbations of training mask it.",
    setting="10 points in 3 dimensions, ReLU² network 3-6-1, exponential loss, l2-FGM; normalized "
    "margins at the limits of `find_limit` from 4 random starts, mean ± standard deviation, the "
    "largest of a column in bold. A start from which one of the searches reaches no limit is left "
    "out. Strong attack: projected gradient with restarts, by `certify`. The radii of the right "
    "panel were chosen near the largest.",
    source="Lyu & Zhu 2022 on the adversarial margin; the numbers are gflow's own",
    run=_measure,
    figure=_draw,
    full="12 starts in place of 4, 6 radii in place of 3, 7 radii near the largest in place of 2. "
    "156 searches for limits, 8 times as many as in the small form.",
)
