"""The report of a job: one HTML file that needs nothing else."""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gflow._files import write_text
from gflow.report import answer as words
from gflow.report import tables
from gflow.report.columns import columns_of, significant, write_cell
from gflow.report.end import End
from gflow.report.evaluation import Evaluation, largest
from gflow.report.explorer import view_of
from gflow.report.images import images
from gflow.report.panels import Panel, View, panels
from gflow.report.prose import prose
from gflow.report.record import Record, Results, seeks_limits
from gflow.report.spread import Spread, spreads
from gflow.report.style import look
from gflow.report.vector import drawn
from gflow.trajectory import Trajectory

FILE_NAME = "report.html"

Place = tuple[str, str]
"""A network's name and a perturbation's."""


def write_page(
    results: Results,
    trajectories: Mapping[Place, Trajectory],
    folder: Path,
    *,
    configuration: str,
    ends: Mapping[Place, End] | None = None,
    evaluations: Sequence[Evaluation] = (),
) -> Path:
    """Writes `report.html` into `folder` and returns its path.

    Args:
        results: the numbers.
        trajectories: for the figures.
        folder: where the page goes.
        configuration: the job's settings, as TOML.
        ends: where the runs ended; those with a limit have figures of it.
        evaluations: of the networks whose runs all ended.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gflow.report", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["prose"] = prose
    text = environment.get_template("page.html.jinja").render(
        title=_title(results),
        subtitle=_subtitle(results),
        answer=words.answer(results, evaluations),
        comparison=words.in_numbers(results, evaluations),
        comparison_csv=csv_uri(tables.comparisons(evaluations)),
        reading=words.reading(results, evaluations),
        notices=_notices(results),
        matrices=_matrices(results, evaluations),
        columns=columns_of(results),
        runs_csv=csv_uri(tables.runs(results)),
        limits=seeks_limits(results),
        networks=_networks(results, trajectories, ends or {}, evaluations),
        configuration=configuration,
        versions=sorted(results.versions.items()),
    )
    return write_text(Path(folder) / FILE_NAME, text)


def _title(results: Results) -> str:
    return f"Adversarial training flow on {results.dataset['name']}"


def _subtitle(results: Results) -> str:
    data = results.dataset
    held = f", {data['held_out']} held out" if data.get("held_out") else ""
    return (
        f"{data['examples']} examples{held}, {data['inputs']} inputs; {results.settings['loss']} "
        f"loss, summed over examples; {results.settings['gradient']} gradient. "
        f"{results.seconds:.0f} s, ended {results.created} UTC."
    )


def _notices(results: Results) -> list[str]:
    notices = []
    if results.interrupted:
        missing = results.planned - sum(run.outcome != "interrupted" for run in results.runs)
        notices.append(
            f"The job was interrupted from the keyboard: {missing} of {results.planned} runs were "
            "not finished. What was computed until then is shown; `gflow run --resume` goes on."
        )
    failed = [run for run in results.runs if not run.succeeded]
    if failed:
        names = "; ".join(f"{run.network}, {run.perturbation}" for run in failed)
        notices.append(f"Did not reach what was asked for, and have no verdict: {names}.")
    return notices


def _matrices(results: Results, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The tables of trained under x attacked by, of all networks together."""
    if not evaluations:
        return []
    found, several = [], spreads(evaluations, results.settings)
    for name, title, meaning, write in _tables(results):
        groups = [_group(each, getattr(each, name), write) for each in evaluations]
        if any(group["any"] for group in groups):
            first = evaluations[0]
            found.append(
                {
                    "title": title,
                    "meaning": meaning,
                    "columns": first.columns,
                    "num_strong": len(first.strong),
                    "groups": [_spread_group(each, name, write) for each in several] or groups,
                    "by_seed": groups if several else [],
                    "csv": csv_uri(tables.matrix(evaluations, several, name)),
                    "file": f"matrix-{name}",
                }
            )
    return found


def _tables(results: Results) -> list[tuple[str, str, str, Callable[[float], str]]]:
    """Of each table: the attribute of `Evaluation`, the title, the meaning, and how to write a
    number.
    """
    return [
        (
            "limit",
            "Normalized margin at the limit",
            "minᵢ yᵢ f(xᵢ + δᵢ; u) at the limit of u = θ/‖θ‖: margins over ‖θ‖ᴸ, in which the norm "
            "does not count.",
            significant,
        ),
        (
            "stopped",
            f"Normalized margin {words.stop(results)}",
            "The same where the flows were told to stop, as training would.",
            significant,
        ),
        (
            "accuracy",
            f"Accuracy on the {results.dataset.get('held_out') or 0} examples held out, in percent",
            "At the limit, under the attack of the column.",
            lambda value: f"{100 * value:.1f}",
        ),
    ]


def _group(each: Evaluation, values: np.ndarray, write: Any) -> dict[str, Any]:
    marks = largest(values)
    rows = [
        _matrix_row(
            number,
            row,
            [
                {"text": _written(value, write), "most": bool(most), "range": ""}
                for value, most in zip(values[number], marks[number], strict=True)
            ],
        )
        for number, row in enumerate(each.rows)
    ]
    return {"network": each.network, "rows": rows, "any": bool(np.isfinite(values).any())}


def _spread_group(spread: Spread, name: str, write: Any) -> dict[str, Any]:
    """The mean over seeds, and below it the range."""
    values = spread.of(name)
    marks = largest(values.mean)

    def cell(row: int, column: int) -> dict[str, Any]:
        mean, least, most, count = (each[row, column] for each in values)
        span = f"{_written(least, write)} to {_written(most, write)} {spread.fewer(count)}"
        span = span.rstrip() if count else ""
        return {"text": _written(mean, write), "most": bool(marks[row, column]), "range": span}

    columns = range(len(spread.columns))
    rows = [
        _matrix_row(number, row, [cell(number, column) for column in columns])
        for number, row in enumerate(spread.rows)
    ]
    return {
        "network": f"{spread.network}: mean over {spread.planned} seeds, and range",
        "rows": rows,
    }


def _written(value: float, write: Any) -> str:
    return write(value) if np.isfinite(value) else "–"


def _matrix_row(number: int, name: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "colour": look(number)["color"], "cells": cells}


def _networks(
    results: Results,
    trajectories: Mapping[Place, Trajectory],
    ends: Mapping[Place, End],
    evaluations: Sequence[Evaluation],
) -> list[dict]:
    perturbations = list(dict.fromkeys(run.perturbation for run in results.runs))
    places = {name: i for i, name in enumerate(perturbations)}
    evaluated = {each.network: each for each in evaluations}
    columns, networks = columns_of(results), []
    for number, name in enumerate(dict.fromkeys(run.network for run in results.runs)):
        runs = [run for run in results.runs if run.network == name]
        kept = {run.perturbation: run for run in runs if (name, run.perturbation) in trajectories}
        view = View(
            f"n{number + 1}",
            name,
            kept,
            {run: trajectories[name, run] for run in kept},
            {run: ends[name, run] for run in kept if (name, run) in ends},
            evaluated.get(name),
            places,
            results.settings.get("until", {}).get("log_loss"),
        )
        networks.append(
            {
                "name": name,
                "description": _describe_network(view.trajectories),
                "stop": "" if view.stop is None else words.power_of_e(view.stop),
                "rows": [_row(run, columns, look(places[run.perturbation])) for run in runs],
                "figures": [figure_of(panel, name) for panel in panels(view)] if kept else [],
                "images": [figure_of(panel, name) for panel in images(view)],
                "planes": _planes(view),
            }
        )
    return networks


def _planes(view: View) -> list[dict[str, Any]]:
    """The plane along each run, where the examples have two inputs."""
    found = []
    for run, trajectory in view.trajectories.items():
        problem, end = trajectory.problem, view.ends.get(run)
        if problem is None or problem.dataset.x.shape[1] != 2:
            continue
        limit = None
        if end is not None and end.limit is not None and end.multipliers is not None:
            limit = end.limit, end.multipliers, view.limit(run, "limit_margin") or np.nan
        name = f"{view.prefix}-plane-{view.places[run] + 1}"
        notice = "" if view.records[run].succeeded else "It did not reach what was asked for."
        found.append(
            {"perturbation": run, "view": view_of(trajectory, limit, name=name, notice=notice)}
        )
    return found


def _describe_network(trajectories: Mapping[str, Trajectory]) -> str:
    if not trajectories:
        return "No run of this network was kept."
    problem = next(iter(trajectories.values())).problem
    if problem is None:
        return "A network that the trajectories do not hold."
    widths = getattr(problem.network, "widths", None)
    shape = f"Widths {', '.join(map(str, widths))}; h" if widths else "H"
    return f"{shape}omogeneous of degree L = {problem.degree:g} in its parameters θ; u = θ/‖θ‖."


def _row(run: Record, columns: Sequence[Any], style: Mapping[str, Any]) -> dict[str, Any]:
    cells = [
        {"text": write_cell(run, column), "number": column.write is not None} for column in columns
    ]
    return {
        "perturbation": run.perturbation,
        "colour": style["color"],
        "cells": cells,
        "seconds": f"{run.seconds:.0f} s",
        "succeeded": run.succeeded,
        "result": run.result,
    }


def figure_of(panel: Panel, network: str) -> dict[str, Any]:
    """What the page shows of a panel: its drawing, its words, and files of it."""
    from markupsafe import Markup

    figure = drawn(panel.draw, name=panel.name, description=f"{network}: {panel.title}")
    return {
        "name": panel.name,
        "title": panel.title,
        "prediction": panel.prediction,
        "svg": Markup(figure.inline),
        "files": [
            ("PDF", "pdf", data_uri("application/pdf", figure.pdf)),
            ("SVG", "svg", data_uri("image/svg+xml", figure.svg)),
            ("CSV", "csv", csv_uri(panel.table)),
        ],
    }


def csv_uri(table: str) -> str:
    """A link to a table that it holds."""
    return data_uri("text/csv", table.encode())


def data_uri(kind: str, content: bytes) -> str:
    """A link that holds its content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
