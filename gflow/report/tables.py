"""The tables of a report as CSV."""

from collections.abc import Sequence
from typing import Any

from gflow.report.answer import comparisons as compared
from gflow.report.columns import columns_of
from gflow.report.evaluation import Evaluation
from gflow.report.record import Results
from gflow.report.spread import Spread
from gflow.sweeps.table import written


def comparisons(evaluations: Sequence[Evaluation]) -> str:
    """Clean training beside the best training in the same ball: a row for each network, ball and
    point, at the limit and where the flows stopped.

    `change` is the quotient of the two margins, less 1; the accuracies are those of the limits,
    from 0 to 1.
    """
    rows: list[dict[str, Any]] = []
    for each in evaluations:
        for point in ("limit", "stopped"):
            for one in compared(each, getattr(each, point)):
                row = {"network": one.network, "attacked_by": one.ball, "point": point}
                row |= {"margin_trained_clean": one.clean, "margin_trained_under": one.adversarial}
                row |= {"trained_under": one.trained, "change": one.change}
                clean, adversarial = one.accuracies
                row |= {"accuracy_trained_clean": clean, "accuracy_trained_under": adversarial}
                rows.append(row)
    return written(rows)


def matrix(evaluations: Sequence[Evaluation], several: Sequence[Spread], name: str) -> str:
    """Trained under x attacked by: every matrix; over seeds their mean, smallest, largest, and how
    many seeds have a value.

    Args:
        name: the attribute of `Evaluation`.
    """
    matrices = [(each.network, each.rows, getattr(each, name)) for each in evaluations]
    for spread in several:
        values = spread.of(name)
        for word, table in (("mean", values.mean), ("least", values.least), ("most", values.most)):
            matrices.append((f"{spread.network}, {word} over seeds", spread.rows, table))
        matrices.append((f"{spread.network}, seeds with a value", spread.rows, values.count))
    columns = evaluations[0].columns
    return written(
        [
            {"network": network, "trained_under": row}
            | dict(zip(columns, map(float, values), strict=True))
            for network, rows, table in matrices
            for row, values in zip(rows, table, strict=True)
        ]
    )


def runs(results: Results) -> str:
    """What the table of runs tells, with every digit; nothing but the outcome of a failed run and
    how far it came.
    """
    keys = [column.key for column in columns_of(results)]
    return written(
        [
            {"network": run.network, "trained_under": run.perturbation, "outcome": run.outcome}
            | {key: run.words.get(key, run.figures.get(key)) for key in keys}
            | {"seconds": run.seconds}
            for run in results.runs
        ]
    )
