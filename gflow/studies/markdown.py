"""The ledger as Markdown, from its JSON: for a page of documentation or a repository's folder."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gflow.studies.study import Finding


def markdown(record: Mapping[str, Any], *, level: int = 1) -> str:
    """A table of all studies, then each with its claim, setting and numbers, then the machine.

    Args:
        record: what `ledger.json` holds.
        level: of the first heading; the studies' are one below.
    """
    studies = record["studies"]
    holding = sum(one["verdict"].startswith("holds") for one in studies)
    parts = [
        f"{'#' * level} Claims, predictions, measurements",
        f"{holding} of {len(studies)} hold. Each study states a claim of the literature, what it "
        "predicts, and what gflow measured; seconds are those of the processor, compilation "
        "included.",
        _table(
            ("study", "source", "form", "verdict", "numbers that hold", "CPU seconds"),
            [_summary(one) for one in studies],
            right=(4, 5),
        ),
        *(part for one in studies for part in _section(one, level + 1)),
        f"{'#' * (level + 1)} Machine and versions",
        _table(("", ""), sorted(record["environment"].items())),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(one: Mapping[str, Any]) -> tuple[str, ...]:
    held = sum(finding["holds"] for finding in one["findings"])
    return (
        f"{one['title']} (`{one['name']}`)",
        one["source"],
        one["form"],
        one["verdict"],
        f"{held} of {len(one['findings'])}",
        f"{one['cpu_seconds']:.1f}",
    )


def _section(one: Mapping[str, Any], level: int) -> list[str]:
    full = " --full" if one["form"] == "full" else ""
    parts = [
        f"{'#' * level} {one['title']}: {one['form']} form",
        f"**{one['verdict'].capitalize()}.** {one['claim']}",
    ]
    if one["correction"]:
        parts.append(f"**What holds instead.** {one['correction']}")
    if one["error"]:
        parts.append(f"Not measured: {one['error']}")
    parts.append(f"{one['setting']} `gflow study {one['name']}{full}`. Source: {one['source']}.")
    if one["findings"]:
        header = ("quantity", "predicted", "measured", "compared", "")
        parts.append(_table(header, [_row(item) for item in one["findings"]], right=(1, 2)))
    return parts


def _row(item: Mapping[str, Any]) -> tuple[str, ...]:
    from gflow.studies.ledger import number, relation

    predicted, measured = (
        float("nan") if item[name] is None else item[name] for name in ("predicted", "measured")
    )
    finding = Finding(item["quantity"], predicted, measured, item["tolerance"], item["compared"])
    held = "holds" if item["holds"] else "fails"
    numbers = number(finding.predicted), number(finding.measured)
    return finding.quantity, *numbers, relation(finding), held


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    rules = ["---:" if place in right else "---" for place in range(len(header))]
    lines = [header, rules, *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(cell: str) -> str:
    """What Markdown would take for the end of a cell, or for emphasis, as it stands.

    What stands in backticks is code, in which only the end of a cell is escaped.
    """
    parts = cell.split("`")
    for place, part in enumerate(parts):
        for mark in ("\\", "|", "*", "_", "<") if place % 2 == 0 else ("|",):
            part = part.replace(mark, f"\\{mark}")
        parts[place] = part
    return "`".join(parts)
