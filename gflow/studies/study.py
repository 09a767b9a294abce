"""What a study is: a claim with its source, numbers predicted and measured, and a verdict."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Comparison = Literal["difference", "ratio", "at most", "at least", "apart"]


@dataclass(frozen=True)
class Finding:
    """One number that a claim predicts, beside the number that was measured.

    Attributes:
        quantity: what is compared, in words or as a formula.
        predicted: the number that the claim gives.
        measured: the number that gflow found.
        tolerance: how far they may be apart, >= 0; in the unit of `predicted`, for "ratio" none.
        compared: how. "difference": `|measured - predicted| <= tolerance`. "ratio":
            `|measured / predicted - 1| <= tolerance`. "at most": `measured <= predicted +
            tolerance`. "at least": `measured >= predicted - tolerance`. "apart": `|measured -
            predicted| > tolerance`, for a number as printed that is not what is measured.

    Raises:
        ValueError: a tolerance that is negative or not finite; no such comparison.
    """

    quantity: str
    predicted: float
    measured: float
    tolerance: float
    compared: Comparison = "difference"

    def __post_init__(self):
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"`Finding(tolerance={self.tolerance!r})` must be a number >= 0.")
        if self.compared not in get_args(Comparison):
            choices = ", ".join(map(repr, get_args(Comparison)))
            raise ValueError(f"`Finding(compared={self.compared!r})`: choose one of {choices}.")
        for name in ("predicted", "measured", "tolerance"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def holds(self) -> bool:
        """Whether the numbers agree; False where one of them is NaN or infinite."""
        if not (math.isfinite(self.predicted) and math.isfinite(self.measured)):
            return False
        match self.compared:
            case "ratio":
                distance = abs(self.measured - self.predicted)
                return distance <= self.tolerance * abs(self.predicted)
            case "at most":
                return self.measured <= self.predicted + self.tolerance
            case "at least":
                return self.measured >= self.predicted - self.tolerance
            case "apart":
                return abs(self.measured - self.predicted) > self.tolerance
        return abs(self.measured - self.predicted) <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; None for numbers that are not finite."""
        names = ("predicted", "measured")
        numbers = {name: getattr(self, name) for name in names}
        shown = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        return {**vars(self), **shown, "holds": self.holds}


@dataclass(frozen=True)
class Measurement:
    """What a study measured.

    Attributes:
        findings: the numbers that decide.
        data: what the figure draws: arrays and numbers by name.
    """

    findings: tuple[Finding, ...]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A claim of the literature, and how it is tried.

    Attributes:
        name: for the command line.
        title: a few words.
        claim: what is said to hold, in sentences.
        setting: data, network, attack and how far the flow is followed.
        source: paper and theorem.
        run: measures; `run(True)` is the small form, less than a minute on one CPU core with
            compilation, `run(False)` the full form.
        figure: draws the `data` of a measurement; returns a figure of matplotlib.
        correction: what holds instead, where the claim fails as printed.
        full: what the full form has beyond the small one, and the time it takes; empty where both
            are the same.
    """

    name: str
    title: str
    claim: str
    setting: str
    source: str
    run: Callable[[bool], Measurement]
    figure: Callable[[Mapping[str, Any]], Any]
    correction: str = ""
    full: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of a study.

    Attributes:
        study: what was tried.
        small: whether in its small form.
        findings: the numbers predicted and measured.
        data: what the figure draws.
        seconds: wall-clock time, compilation included.
        error: why nothing was measured, where a run failed.
        cpu_seconds: time of the processors, of all threads together, compilation included: the
            same however much else the machine does.
    """

    study: Study
    small: bool
    findings: tuple[Finding, ...]
    data: Mapping[str, Any] = field(repr=False)
    seconds: float
    error: str = ""
    cpu_seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every finding holds, and there is one."""
        return bool(self.findings) and all(finding.holds for finding in self.findings)

    @property
    def word(self) -> str:
        """One of "holds", "holds as corrected", "does not hold" and "not measured"."""
        if self.error:
            return "not measured"
        if not self.holds:
            return "does not hold"
        return "holds as corrected" if self.study.correction else "holds"

    def __str__(self) -> str:
        lines = [f"{self.study.title}: {self.word} ({self.seconds:.1f} s)", *[self.error][:1]]
        lines += [
            f"  {'' if one.holds else 'NOT '}{one.quantity}: predicted {one.predicted:.6g}, "
            f"measured {one.measured:.6g} ({one.compared}, tolerance {one.tolerance:.2g})"
            for one in self.findings
        ]
        return "\n".join(line for line in lines if line)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, without the data of the figure."""
        study = self.study
        words = ("name", "title", "claim", "setting", "source", "correction")
        return {
            **{word: getattr(study, word) for word in words},
            "form": "small" if self.small else "full",
            "verdict": self.word,
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "error": self.error,
        }
