"""The ledger of studies: JSON with the machine, Markdown, a figure of each, and an HTML page."""

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gflow._files import write_text
from gflow.studies.markdown import markdown
from gflow.studies.study import Finding, Verdict
from gflow.studies.style import save, stacked, styled

JSON_NAME, TEXT_NAME, PAGE_NAME = "ledger.json", "ledger.md", "ledger.html"


def write_ledger(
    verdicts: Sequence[Verdict], folder: str | os.PathLike, *, figures: bool = True
) -> Path:
    """Writes `ledger.json` and `ledger.md`, and with `figures` `ledger.html` and `NAME.png` and
    `.svg` of each.

    Every file is there whole or not at all. The folder is made where it is missing.

    Args:
        verdicts: what `gflow.studies.run` returned.
        folder: where the files go.
        figures: needs the extra `plot`.

    Returns:
        The page; without figures the JSON.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(), "studies": [one.to_dict() for one in verdicts]}
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    path = write_text(folder / JSON_NAME, text + "\n")
    write_text(folder / TEXT_NAME, markdown(record))
    if not figures:
        return path
    for verdict in verdicts:
        save_figures(verdict, folder)
    return write_text(folder / PAGE_NAME, _page(verdicts, record["environment"]))


def save_figures(verdict: Verdict, folder: Path) -> None:
    """Writes the study's figure as PNG and SVG, unless nothing was measured."""
    if verdict.data:
        for kind in ("png", "svg"):
            save(
                lambda: verdict.study.figure(verdict.data), folder / f"{verdict.study.name}.{kind}"
            )


def environment() -> dict[str, Any]:
    """The machine and the versions, without anything that names the machine."""
    from gflow.report.record import versions

    return {
        **versions(),
        "processor": _processor(),
        "processors": str(os.cpu_count()),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def number(value: float) -> str:
    """Six significant digits, as tables show numbers."""
    return f"{value:.6g}"


def relation(finding: Finding) -> str:
    """How the numbers of a finding were compared, as a table says it."""
    size = f"{finding.tolerance:.2g}"
    match finding.compared:
        case "difference":
            return f"± {size}"
        case "ratio":
            return f"± {100 * finding.tolerance:.2g} %"
        case "apart":
            return f"differs by more than {size}"
    if finding.tolerance == 0:
        return finding.compared
    return f"{finding.compared}, {'+' if finding.compared == 'at most' else '-'} {size}"


def _page(verdicts: Sequence[Verdict], machine: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from gflow.report.prose import prose

    environment = Environment(
        loader=PackageLoader("gflow.studies", ""), autoescape=True, undefined=StrictUndefined
    )
    holding = sum(verdict.holds for verdict in verdicts)
    return environment.get_template("ledger.html.jinja").render(
        subtitle=f"{holding} of {len(verdicts)} hold.",
        studies=[_section(verdict) for verdict in verdicts],
        machine=sorted(machine.items()),
        number=number,
        relation=relation,
        prose=prose,
    )


def _section(verdict: Verdict) -> dict[str, Any]:
    figures = {"wide": styled, "narrow": lambda draw: styled(lambda: stacked(draw))}
    drawn = {form: _figure(verdict, form, how) for form, how in figures.items()}
    return {"verdict": verdict, "study": verdict.study, "figures": drawn if verdict.data else {}}


def _figure(verdict: Verdict, form: str, how: Any) -> Any:
    """The study's figure as an element of the page, where something was measured."""
    from markupsafe import Markup

    from gflow.report.vector import svg

    if not verdict.data:
        return ""
    study = verdict.study
    text = svg(
        lambda: how(lambda: study.figure(verdict.data)),
        name=f"{study.name}-{form}",
        description=f"{study.title}: {study.claim}",
    )
    return Markup(text)
