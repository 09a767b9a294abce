"""The result of a job in plain words: does adversarial training enlarge the adversarial margin?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gflow.report.columns import significant
from gflow.report.evaluation import Evaluation
from gflow.report.record import Results, seeks_limits
from gflow.report.spread import spreads

# Two margins closer than this, relative, are told to be equal: they come from one limit.
_EQUAL = 1e-4
_RAISED = str.maketrans("-0123456789.", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹·")


class Comparison(NamedTuple):
    """Clean training beside the best of adversarial training with a ball, under a strong attack.

    Attributes:
        network, ball: what is compared.
        trained: the name of the best adversarial training.
        clean, adversarial: their normalized margins under the strong attack in the ball.
        accuracies: of the limits of both, under that attack on the examples held out, from 0 to 1;
            NaN where there are none.
    """

    network: str
    ball: str
    trained: str
    clean: float
    adversarial: float
    accuracies: tuple[float, float]

    @property
    def change(self) -> float:
        """By which part the margin is larger: 0 where both come from one limit, infinite where
        clean training has none, NaN where neither has one.
        """
        if self.clean <= 0:
            return np.inf if self.adversarial > 0 else np.nan
        change = self.adversarial / self.clean - 1
        return 0.0 if abs(change) <= _EQUAL else change


def comparisons(evaluation: Evaluation, margins: np.ndarray) -> list[Comparison]:
    """One for each ball that a run was trained in, where a clean run is there too.

    Args:
        margins: `evaluation.limit` or `evaluation.stopped`.
    """
    rows, balls = evaluation.rows, evaluation.balls
    clean = [i for i, row in enumerate(rows) if balls[row] is None]
    found = []
    for name in evaluation.strong:
        column = evaluation.columns.index(name)
        values = margins[:, column]
        inside = [i for i, row in enumerate(rows) if balls[row] == balls[name]]
        inside = [i for i in inside if np.isfinite(values[i])]
        if inside and clean and np.isfinite(values[clean[0]]):
            best = max(inside, key=lambda i: values[i])
            pair = float(values[clean[0]]), float(values[best])
            ends = evaluation.accuracy[[clean[0], best], column]
            accuracies = float(ends[0]), float(ends[1])
            found.append(Comparison(evaluation.network, name, rows[best], *pair, accuracies))
    return found


def answer(results: Results, evaluations: Sequence[Evaluation]) -> str:
    """The result of the job in plain words."""
    at_limit = [one for each in evaluations for one in comparisons(each, each.limit)]
    before = [one for each in evaluations for one in comparisons(each, each.stopped)]
    told = [
        _told(found, where)
        for found, where in ((at_limit, "at the limit"), (before, stop(results)))
        if found
    ]
    if not told:
        return _sure(results)
    return (
        f"Adversarial training enlarges the adversarial margin {', and '.join(told)}; normalized "
        "margins under a strong attack, clean training beside the best run trained in the same "
        f"ball. {_sure(results)}"
    )


def in_numbers(results: Results, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The numbers behind the answer: for each network and ball two margins and their change.

    Margins are those at the limits, or where no limit is known those where the flows stopped; the
    change is told of both. Accuracies are told where there are any.
    """
    at_limit, stopped = (
        {
            (one.network, one.ball): one
            for each in evaluations
            for one in comparisons(each, getattr(each, name))
        }
        for name in ("limit", "stopped")
    )
    places = [("at the limit", at_limit), (stop(results), stopped)]
    places = [(where, found) for where, found in places if found]
    rows = []
    for key in dict.fromkeys(key for _, found in places for key in found):
        shown = next(found[key] for _, found in places if key in found)
        changes = [percent(found[key].change) if key in found else "–" for _, found in places]
        margins = significant(shown.clean), significant(shown.adversarial)
        row = {"name": key, "trained": shown.trained, "margins": margins, "changes": changes}
        rows.append(row | {"accuracies": _in_percent(shown.accuracies)})
    told = any(row["accuracies"] for row in rows)
    return {"rows": rows, "places": [where for where, _ in places], "accuracies": told}


def _in_percent(accuracies: tuple[float, float]) -> str:
    """Of clean training and of adversarial; nothing where they are not known."""
    if not np.all(np.isfinite(accuracies)):
        return ""
    return " → ".join(f"{100 * value:.1f}" for value in accuracies)


def reading(results: Results, evaluations: Sequence[Evaluation]) -> str:
    """What the words of the answer mean, and what it does not tell."""
    words = [
        "The best run in a ball is chosen by the margin that is told.",
        "Equal loss is that of each run in its own training, under its own attack: a run under "
        "attack has then trained further than a clean one, and its margin without attack may be "
        "larger, too.",
    ]
    if not spreads(evaluations, results.settings):
        words.insert(0, "Each network has one start: nothing is known of the spread over starts.")
    at_limit = [one.change for each in evaluations for one in comparisons(each, each.limit)]
    if 0.0 in at_limit:
        words.append(
            "No change at the limit is what theory says of linear predictors under l2 attacks (Lyu "
            "& Zhu 2022)."
        )
    return " ".join(words)


def _sure(results: Results) -> str:
    """How many runs arrived, and how well."""
    arrived = [run for run in results.runs if run.succeeded]
    count = f"{len(arrived)} of {results.planned} runs"
    if not seeks_limits(results):
        return f"{count} reached what was asked for."
    found = [run for run in arrived if run.figures.get("limit_stationarity") is not None]
    words = f"The limits of {len(found)} of {results.planned} runs were found"
    if found:
        worst = max(run.figures["limit_stationarity"] or 0.0 for run in found)
        sure = sum(run.words.get("basin") in ("confirmed", "reproduced") for run in found)
        words += f" (stationarity at most {worst:.0e}; basin confirmed in {sure})"
    if len(found) < len(arrived):
        others = len(arrived) - len(found)
        words += f"; of {others} the flow came to its end, and its limit was not sought"
    return f"{words}."


def stop(results: Results) -> str:
    """Where the flows were told to stop, in words."""
    log_loss = results.settings.get("until", {}).get("log_loss")
    if log_loss is None:
        return "where the flows stopped"
    return f"at equal loss {power_of_e(log_loss)}"


def power_of_e(exponent: float) -> str:
    """`e⁻¹⁰` for -10."""
    return "e" + f"{exponent:g}".translate(_RAISED)


def _told(found: list[Comparison], where: str) -> str:
    """How often the margin is larger, equal and smaller, and by how much."""
    changes = np.array([one.change for one in found])
    larger, smaller = changes[changes > 0], changes[changes < 0]
    words = [_span(larger)] if larger.size else []
    if np.any(changes == 0):
        words.append(f"{np.sum(changes == 0)} equal")
    if smaller.size:
        words.append(f"{smaller.size} smaller, {_span(smaller)}")
    if np.any(np.isnan(changes)):
        words.append(f"{np.sum(np.isnan(changes))} with no margin in either")
    return f"in {larger.size} of {len(found)} comparisons {where} ({'; '.join(words)})"


def _span(changes: np.ndarray) -> str:
    """From the smallest to the largest change, in size."""
    ends = changes[np.argsort(np.abs(changes))][[0, -1]]
    return " to ".join(dict.fromkeys(percent(float(end)) for end in ends))


def percent(change: float) -> str:
    """`+12.3 %`; words where there is nothing to divide by."""
    if np.isnan(change):
        return "no margin in either"
    if np.isposinf(change):
        return "from no margin to one"
    return f"{100 * change:+.1f} %"
