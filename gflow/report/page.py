"""The report of a job: one HTML file that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gflow._files import write_text
from gflow.report.overview import look, margins_figure, overview_figure
from gflow.report.record import COLUMNS, Record, Results, write_cell
from gflow.report.vector import svg

FILE_NAME = "report.html"


def write_page(
    results: Results,
    trajectories: Mapping[tuple[str, str], Any],
    folder: Path,
    *,
    configuration: str,
) -> Path:
    """Writes `report.html` into `folder` and returns its path.

    Args:
        results: the numbers.
        trajectories: (network, perturbation) -> trajectory, for the figures.
        folder: where the page goes.
        configuration: the job's settings, as TOML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gflow.report", ""), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("page.html.jinja").render(
        title=_title(results),
        subtitle=_subtitle(results),
        notices=_notices(results),
        columns=COLUMNS,
        networks=_networks(results, trajectories),
        configuration=configuration,
        versions=sorted(results.versions.items()),
    )
    return write_text(Path(folder) / FILE_NAME, text)


def _title(results: Results) -> str:
    return f"Adversarial training flow on {results.dataset['name']}"


def _subtitle(results: Results) -> str:
    data = results.dataset
    return (
        f"{data['examples']} examples, {data['inputs']} inputs; {results.settings['loss']} loss, "
        f"summed over examples; {results.settings['gradient']} gradient. "
        f"{_count(results)} in {results.seconds:.0f} s, ended {results.created} UTC."
    )


def _count(results: Results) -> str:
    reached = sum(run.succeeded for run in results.runs)
    return f"{reached} of {results.planned} runs reached what was asked for"


def _notices(results: Results) -> list[str]:
    notices = []
    if results.interrupted:
        missing = results.planned - len(results.runs)
        notices.append(
            f"The job was interrupted from the keyboard: {missing} of {results.planned} runs were "
            "not begun. What was computed until then is shown."
        )
    failed = [run for run in results.runs if not run.succeeded]
    if failed:
        names = "; ".join(f"{run.network}, {run.perturbation}" for run in failed)
        notices.append(f"Did not reach what was asked for: {names}.")
    return notices


def _networks(results: Results, trajectories: Mapping[tuple[str, str], Any]) -> list[dict]:
    perturbations = list(dict.fromkeys(run.perturbation for run in results.runs))
    looks = {name: look(i) for i, name in enumerate(perturbations)}
    networks = []
    for number, name in enumerate(dict.fromkeys(run.network for run in results.runs)):
        runs = [run for run in results.runs if run.network == name]
        drawn = {
            run.perturbation: trajectories[name, run.perturbation]
            for run in runs
            if (name, run.perturbation) in trajectories
        }
        networks.append(
            {
                "name": name,
                "description": _describe_network(drawn),
                "rows": [_row(run, looks[run.perturbation]["color"]) for run in runs],
                "figures": _figures(f"n{number}", name, runs, drawn, looks) if drawn else [],
            }
        )
    return networks


def _describe_network(drawn: Mapping[str, Any]) -> str:
    if not drawn:
        return "No run of this network was kept."
    problem = next(iter(drawn.values())).problem
    if problem is None:
        return "A network that the trajectories do not hold."
    widths = getattr(problem.network, "widths", None)
    shape = f"Widths {', '.join(map(str, widths))}; h" if widths else "H"
    return f"{shape}omogeneous of degree L = {problem.degree:g} in its parameters θ; u = θ/‖θ‖."


def _row(run: Record, colour: str) -> dict[str, Any]:
    return {
        "perturbation": run.perturbation,
        "colour": colour,
        "cells": [write_cell(run, column) for column in COLUMNS],
        "succeeded": run.succeeded,
        "result": run.result,
    }


def _figures(
    prefix: str,
    network: str,
    runs: list[Record],
    drawn: Mapping[str, Any],
    looks: Mapping[str, dict],
) -> list[dict[str, Any]]:
    from markupsafe import Markup

    reached = {run.perturbation: run.succeeded for run in runs}
    named = {
        name if reached[name] else f"{name} (not reached)": trajectory
        for name, trajectory in drawn.items()
    }
    styles = [looks[name] for name in drawn]
    captions = {
        "overview": "Against the time t of the flow dθ/dt = -∇Loss, one curve a perturbation. The "
        "loss is a sum over examples. Margins are normalized; until the examples are separated "
        "they lie below zero. Stationarity is the sine of the angle between the direction u and "
        "the flow; layer alignment has a curve for each pair of adjacent layers.",
        "margins": "Normalized margins of each run: clean examples, perturbed examples, and the "
        "smoothed margin, which rises to the adversarial margin as the loss falls.",
    }
    draw = {
        "overview": lambda: overview_figure(named, looks=styles),
        "margins": lambda: margins_figure(named, looks=styles),
    }
    return [
        {
            "svg": Markup(
                svg(draw[kind], name=f"{prefix}-{kind}", description=f"{network}: {kind}")
            ),
            "caption": captions[kind],
        }
        for kind in draw
    ]
