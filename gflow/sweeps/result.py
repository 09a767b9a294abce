"""What a sweep found: all its runs, as a table, as a spread, as files."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, overload

from gflow._checks import is_list, one_of
from gflow._files import checked_path, write_text
from gflow._signatures import nearest
from gflow.limit import Limit
from gflow.sweeps.run import REFUSED, Run
from gflow.sweeps.table import COLUMNS, cell, spread, written


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """The runs of `gflow.sweep`, in the order of their settings.

    `len`, iteration and indexing are those of the runs; a slice is a sweep.

    Attributes:
        runs: every run, those that failed or were not begun too.
        options: of the search, those that are not the usual ones, as text.
        chunk: how many runs were searched at once.
    """

    runs: tuple[Run, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    chunk: int = 1

    @property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The settings of every run."""
        return tuple(run.settings for run in self.runs)

    @property
    def limits(self) -> tuple[Limit | None, ...]:
        """The limit of every run; None where no search was made."""
        return tuple(run.limit for run in self.runs)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the settings, in order of appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def arrived(self) -> "Sweep":
        """The runs whose limit was found."""
        return replace(self, runs=tuple(run for run in self.runs if run.arrived))

    @property
    def failed(self) -> "Sweep":
        """The runs whose limit was not found."""
        return replace(self, runs=tuple(run for run in self.runs if not run.arrived))

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> "Sweep": ...
    def __getitem__(self, index: int | slice) -> "Run | Sweep":
        if isinstance(index, slice):
            return replace(self, runs=self.runs[index])
        return self.runs[index]

    def where(self, **settings: Any) -> "Sweep":
        """The runs whose settings have these values.

        Raises:
            ValueError: there is no setting of this name.
        """
        self._check_settings("where", settings)
        wanted = {name: cell(value) for name, value in settings.items()}
        found = (
            run
            for run in self.runs
            if all(cell(run.settings.get(name)) == value for name, value in wanted.items())
        )
        return replace(self, runs=tuple(found))

    def table(self) -> list[dict[str, Any]]:
        """One row a run: the settings, then `outcome`, `arrived`, `margin` and more.

        Of a run that did not arrive, numbers that could be taken for a result are None.
        """
        rows = [run.row() for run in self.runs]
        empty = dict.fromkeys(self.names)
        return [{**empty, **row} for row in rows]

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`, one row a run. Needs the extra `table`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "`sweep.to_pandas()` needs pandas: `pip install 'gflow[table]'`. "
                "`sweep.to_csv(path)` and `sweep.table()` go without."
            ) from error
        columns = [*self.names, *COLUMNS]
        frame = pandas.DataFrame(self.table(), columns=columns)
        numbers = [name for name in COLUMNS if frame[name].dtype == object and name in _NUMBERS]
        return frame.astype(dict.fromkeys(numbers, float))

    def to_csv(self, path: str | os.PathLike) -> Path:
        """Writes the table as CSV in UTF-8, whole or not at all; a missing number is empty.

        Args:
            path: the file; .csv is appended unless it ends in that. Its folder must exist.

        Raises:
            TypeError, ValueError, OSError: as for `Trajectory.save`.
        """
        return write_text(checked_path(path, ".csv", "sweep.to_csv({!r})"), written(self.table()))

    def spread(self, by: str | Sequence[str], *, of: str = "margin") -> list[dict[str, Any]]:
        """Mean, smallest, largest and standard deviation over all settings that are not named.

            sweep.spread("radius")             # over seeds and all else
            pandas.DataFrame(sweep.spread(["network", "radius"], of="steps"))

        Args:
            by: the settings whose every combination has a row of its own.
            of: the column: "margin", or another number of the table.

        Returns:
            One dict for each combination, in order of appearance: the settings, `runs`, `arrived`
            (how many have a number), `mean`, `min`, `max` and `std`, the sample standard deviation
            (its square divides by one less than the count). NaN where there are too few. The list
            is printed as a table.

        Raises:
            TypeError: `by` is neither a name nor a list of names.
            ValueError: there is no such setting, or no such number.
        """
        if not (isinstance(by, str) or is_list(by)):
            raise TypeError(f"`sweep.spread({by!r})`: give the name of a setting, or a list.")
        names = [by] if isinstance(by, str) else list(by)
        self._check_settings("spread", names)
        if not one_of(of, _NUMBERS):
            raise ValueError(
                f"`sweep.spread(of={of!r})`: there is no such number; there are "
                f"{', '.join(_NUMBERS)}."
            )
        return spread(self.table(), names, of)

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes the whole sweep, its limits included, into a folder, from which `Sweep.load` reads
        it and `gflow.sweep(..., folder=...)` goes on with it.

        Args:
            folder: is made if it is missing.

        Raises:
            TypeError: `folder` is no path.
            ValueError: it holds another sweep.
            RuntimeError: another process is writing into it.
            OSError: it cannot be written to.
        """
        from gflow.sweeps.folder import save

        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise TypeError(f"`sweep.save({folder!r})`: give the path of a folder.")
        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Sweep":
        """Reads a sweep from the folder that `save` or `gflow.sweep(..., folder=...)` wrote.

        Runs that are not there have the outcome "not_begun". A setting that a file cannot hold,
        such as a function, comes back as its name.

        Raises:
            FileNotFoundError: the folder holds no sweep.
            ValueError: a file is damaged, or of another version.
            TypeError: `folder` is no path.
        """
        from gflow.sweeps.folder import load

        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"`Sweep.load({folder!r})`: give the path of a folder.")
        return load(Path(folder))

    def _check_settings(self, call: str, names: Any) -> None:
        for name in names:
            if name not in self.names:
                meant = nearest(str(name), self.names)
                guess = f"; perhaps `{meant}` is meant" if meant else ""
                raise ValueError(
                    f"`sweep.{call}(...)`: there is no setting `{name}`{guess}. There are "
                    f"{', '.join(self.names)}."
                )

    def __repr__(self) -> str:
        arrived = self.arrived
        basins = Counter(run.limit.basin for run in arrived if run.limit is not None)
        verdicts = Counter(run.limit.verdict for run in arrived if run.limit is not None)
        failed = Counter(run.outcome for run in self.failed)
        steps = [run.limit.num_flow_steps for run in arrived if run.limit is not None]
        lines = [
            f"Sweep({len(self)} runs over {_few(self.names)}",
            f"  arrived   {len(arrived)} of {len(self)}{_counted(basins, ': ')}",
        ]
        if len(arrived):
            margins = [run.limit.margin for run in arrived if run.limit is not None]
            lines += [
                f"  margins   {min(margins):.6g} to {max(margins):.6g}",
                f"  verdicts  {_counted(verdicts)}",
                f"  steps     {min(steps)} to {max(steps)} of the flow",
            ]
        if failed:
            lines.append(f"  failed    {_counted(failed)}")
        refused = next((run.message for run in self if run.outcome == REFUSED), "")
        if refused:
            lines.append(f"  refused   {shorten(refused, _MOST_LETTERS)}")
        return "\n".join(lines) + ")"


_NUMBERS = tuple(
    name for name in COLUMNS if name not in ("outcome", "arrived", "verdict", "basin", "message")
)
_MOST_SHOWN = 6
_MOST_LETTERS = 100


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more


def _counted(counts: Counter[str], before: str = "") -> str:
    """`28 confirmed, 2 undecided`, the most frequent first."""
    text = ", ".join(f"{count} {name}" for name, count in counts.most_common(_MOST_SHOWN))
    return before + text if text else ""
