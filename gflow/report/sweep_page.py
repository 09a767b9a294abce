"""The report of a sweep: one HTML file that needs nothing else."""

from collections import Counter
from pathlib import Path
from typing import Any

from gflow._files import write_text
from gflow.report.multiples import multiples, numbers_of, panel
from gflow.report.page import FILE_NAME, csv_uri, figure_of
from gflow.report.sweep_record import SweepRecord, over_seeds, significant
from gflow.sweeps.table import written

_MOST_FAILED = 20


def write_sweep_page(record: SweepRecord, folder: Path, *, configuration: str) -> Path:
    """Writes `report.html` into `folder` and returns its path.

    Args:
        configuration: the sweep's file, as TOML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gflow.report", ""), autoescape=True, undefined=StrictUndefined
    )
    names, groups = over_seeds(record)
    text = environment.get_template("sweep.html.jinja").render(
        title=f"Limits of adversarial training on {record.data}",
        answer=_answer(record),
        subtitle=f"{record.seconds:.0f} s, ended {record.created} UTC.",
        notices=_notices(record),
        numbers=_figures(record),
        names=names,
        groups=[_cells(names, group) for group in groups],
        failed=_failed(record),
        csv=csv_uri(written(record.rows)),
        configuration=configuration,
        versions=sorted(record.versions.items()),
    )
    return write_text(Path(folder) / FILE_NAME, text)


def _answer(record: SweepRecord) -> str:
    margins = [row["margin"] for row in record.rows if row["margin"] is not None]
    arrived = f"{record.num_arrived} of {len(record.rows)} runs came to their limits"
    if not margins:
        return f"{arrived}."
    basins = Counter(row["basin"] for row in record.rows if row["basin"])
    told = ", ".join(f"{count} {name}" for name, count in basins.most_common())
    low, high = significant(min(margins)), significant(max(margins))
    return f"{arrived}, with normalized margins from {low} to {high}; their basins: {told}."


def _notices(record: SweepRecord) -> list[str]:
    unfinished = ("interrupted", "not_begun", "seconds_spent")
    left = sum(row["outcome"] in unfinished for row in record.rows)
    if not left:
        return []
    why = "was interrupted from the keyboard" if record.interrupted else "spent its seconds"
    return [f"The sweep {why}: {left} runs are not finished; `gflow sweep --resume` goes on."]


def _figures(record: SweepRecord) -> list[dict[str, Any]]:
    """For every swept number, a panel for each network under each attack."""
    return [
        {
            "name": number,
            "figures": [
                figure_of(panel(each, f"sweep-{count + 1}-{place + 1}"), record.data)
                for place, each in enumerate(multiples(record.rows, record.names, number))
            ],
        }
        for count, number in enumerate(numbers_of(record.rows, record.names))
    ]


def _cells(names: list[str], group: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": ["" if group[name] is None else str(group[name]) for name in names],
        "arrived": f"{group['arrived']} of {group['runs']}",
        "all": group["arrived"] == group["runs"],
        "numbers": [significant(group[key]) for key in ("mean", "min", "max", "std")],
    }


def _failed(record: SweepRecord) -> list[dict[str, Any]]:
    """By outcome: how many runs, what it means, and the settings of the first ones."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in record.rows:
        if not row["arrived"]:
            groups.setdefault(row["outcome"], []).append(row)
    return [
        {
            "outcome": outcome.replace("_", " "),
            "count": len(rows),
            "message": rows[0]["message"],
            "runs": [
                ", ".join(f"{name} {row[name]}" for name in record.names if row[name] is not None)
                for row in rows[:_MOST_FAILED]
            ],
            "more": max(len(rows) - _MOST_FAILED, 0),
        }
        for outcome, rows in groups.items()
    ]
