"""The columns of a job's table: headings, meanings, and how numbers are written."""

from collections.abc import Callable
from dataclasses import dataclass

from gflow.report.record import Record, Results, descends, seeks_limits


@dataclass(frozen=True)
class Column:
    """A column of the table of results.

    Attributes:
        key: its number's name in `Record.figures`, or its word's in `Record.words`.
        title: its heading; a line break says where a narrow table may break it.
        meaning: the number, in words.
        write: the number as text, with as many digits whatever the number.
    """

    key: str
    title: str
    meaning: str
    write: Callable[[float], str] | None


def significant(value: float) -> str:
    """Four significant digits, zeros at the end included."""
    text = f"{value:#.4g}"
    return text if "e" not in text else f"{value:.3e}"


def _scientific(value: float) -> str:
    return f"{value:.1e}"


def _count(value: float) -> str:
    return f"{value:.0f}"


FLOW_COLUMNS = (
    Column(
        "margin",
        "margin",
        "normalized margin of the clean examples, min_i y_i f(x_i; u), at u = params/|params|",
        significant,
    ),
    Column(
        "adversarial_margin",
        "adv.\nmargin",
        "the same for the perturbed examples, min_i y_i f(x_i + delta_i; u): what adversarial "
        "training maximises in the limit",
        significant,
    ),
    Column(
        "smoothed_margin",
        "smoothed\nmargin",
        "l^{-1}(Loss)/|params|^L, a lower bound of the adversarial margin that meets it as the "
        "loss goes to 0",
        significant,
    ),
    Column(
        "log_loss",
        "log-loss",
        "natural logarithm of the adversarial loss reached, a sum over the examples",
        lambda value: f"{value:.2f}",
    ),
    Column(
        "stationarity",
        "stationarity",
        "sine of the angle between u and the negative gradient of the loss: 0 at a KKT point of "
        "the max-margin problem",
        _scientific,
    ),
    Column(
        "alignment",
        "alignment",
        "smallest |<v_{k+1}, u_k>| of adjacent layers' leading singular vectors: 1 is aligned, as "
        "theory predicts for deep linear networks",
        lambda value: f"{value:.3f}",
    ),
    Column("steps", "steps", "steps that the solver tried", _count),
)
"""What is told of a job whose runs stop where their flow was told to."""

LIMIT_COLUMNS = (
    Column(
        "limit_margin",
        "margin at\nlimit",
        "normalized margin minᵢ qᵢ(u) at the limit of u = θ/‖θ‖, under the attack of the training "
        "itself, whose signs may be smoothed; the matrix above attacks with exact ones",
        significant,
    ),
    Column(
        "limit_stationarity",
        "stationarity",
        "|u − Σ λᵢ ∇qᵢ(u)| at the limit: rounding, where it is a KKT point",
        _scientific,
    ),
    Column(
        "distance",
        "distance\nof flow",
        "|u − u_limit| where the flow was told to stop: how far training to that loss is from "
        "where it goes; 2 would be opposite directions",
        lambda value: f"{value:.3f}",
    ),
    Column(
        "distance_at_cap",
        "at last\npoint",
        "|u − u_limit| at the last point of the true flow, whose smallest margin is as many logits "
        "as `limit.cap_logits`",
        _scientific,
    ),
    Column(
        "steps", "steps", "steps of the flow that the solver tried on the way to the limit", _count
    ),
    Column(
        "basin",
        "basin",
        "confirmed: followed on from its last point with its temperature capped, the flow came "
        "within 0.015 of the limit and met no saddle; reproduced: other searches ended there too; "
        "undecided: a saddle was met, or the search handed over from afar",
        None,
    ),
    Column(
        "verdict",
        "verdict",
        "what kind of point the limit is: a maximum of the adversarial margin; or a stable rest "
        "point, near which the margin may be a little larger, where the perturbation is held fixed "
        "while differentiating or a neuron that has died out would grow if it pointed elsewhere; "
        "within a family where merged or aligned neurons leave a continuum of equals",
        None,
    ),
)
"""What is told of a job whose runs go to their limits."""


DESCENT_COLUMNS = (
    Column(
        "descent_margin",
        "descent:\nmargin",
        "normalized margin at the end of training by steps, under the attack of the training",
        significant,
    ),
    Column(
        "descent_distance",
        "descent:\ndistance",
        "distance of the direction at the end of training by steps to the limit; to the end of the "
        "flow where no limit is sought",
        lambda value: f"{value:.3f}",
    ),
)
"""What is told besides where the job trains by steps too."""


def columns_of(results: Results) -> tuple[Column, ...]:
    """The columns of this job's table."""
    columns = LIMIT_COLUMNS if seeks_limits(results) else FLOW_COLUMNS
    return (*columns, *DESCENT_COLUMNS) if descends(results) else columns


def write_cell(run: Record, column: Column) -> str:
    """A number or a word of a run as tables show it."""
    if column.write is None:
        return run.words.get(column.key, "-")
    value = run.figures.get(column.key)
    return "-" if value is None else column.write(value)
