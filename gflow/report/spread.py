"""Several seeds of one network: the mean of its matrices over them, and their range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gflow.report.evaluation import Evaluation


def seeded(network: str, seed: int) -> str:
    """What a network from one of several seeds is called."""
    return f"{network}, seed {seed}"


def unseeded(network: str, seeds: Sequence[int]) -> str:
    """The name that `seeded` was given; the same name where it names none of the seeds."""
    ends = (seeded("", seed) for seed in seeds)
    return next((network.removesuffix(end) for end in ends if network.endswith(end)), network)


class Values(NamedTuple):
    """A matrix over seeds. Shapes: (r, c); NaN where no seed has a value.

    Attributes:
        mean, least, most: over the seeds that have a value.
        count: how many have one.
    """

    mean: np.ndarray
    least: np.ndarray
    most: np.ndarray
    count: np.ndarray


@dataclass(frozen=True, eq=False)
class Spread:
    """The evaluations of one network from several seeds.

    Attributes:
        network: its name, without a seed.
        rows: the perturbations that it was trained under.
        columns: the attacks.
        evaluations: one for each seed that was attacked.
        planned: how many seeds were asked for.
    """

    network: str
    rows: list[str]
    columns: list[str]
    evaluations: list[Evaluation]
    planned: int

    def of(self, name: str) -> Values:
        """The mean and the range of a matrix of `Evaluation`, such as "limit"."""
        return self._over([getattr(each, name) for each in self.evaluations])

    def shown(self) -> Values:
        """Of the margins at the limits; where no seed came to one, where the flows stopped."""
        some = any(np.isfinite(each.limit).any() for each in self.evaluations)
        return self.of("limit" if some else "stopped")

    def below(self) -> list[list[str]]:
        """What stands below each mean of `shown`: half of the range over seeds, and of how many
        seeds it is where some have no value. Shape (r, c).
        """
        values = self.shown()

        def told(least: float, most: float, count: int) -> str:
            around = f"± {(most - least) / 2:.2g} " if count > 1 else ""
            return (around + self.fewer(count)).rstrip()

        return np.vectorize(told, otypes=[object])(values.least, values.most, values.count).tolist()

    def fewer(self, count: int | np.integer) -> str:
        """`(2 of 3)` where only some of the seeds have a value."""
        return f"({count} of {self.planned})" if 0 < count < self.planned else ""

    def _over(self, matrices: Sequence[np.ndarray]) -> Values:
        table = np.full((len(matrices), len(self.rows), len(self.columns)), np.nan)
        for seed, (each, matrix) in enumerate(zip(self.evaluations, matrices, strict=True)):
            rows = [self.rows.index(row) for row in each.rows]
            columns = [self.columns.index(column) for column in each.columns]
            table[np.ix_([seed], rows, columns)] = matrix
        known = np.isfinite(table)
        count = known.sum(axis=0)
        mean = np.where(known, table, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan)
        least, most = (
            np.where(count > 0, pick(np.where(known, table, none), axis=0), np.nan)
            for pick, none in ((np.min, np.inf), (np.max, -np.inf))
        )
        return Values(mean, least, most, count)


def spreads(evaluations: Sequence[Evaluation], settings: Mapping[str, Any]) -> list[Spread]:
    """One for each network that was run from several seeds; none where there is one seed.

    Args:
        settings: of the job, as in `Results.settings`.
    """
    seeds = settings.get("seed")
    if not isinstance(seeds, list) or len(seeds) < 2:
        return []
    by_network: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        by_network.setdefault(unseeded(each.network, seeds), []).append(each)
    return [
        Spread(
            network,
            _union([one.rows for one in some]),
            _union([one.columns for one in some]),
            some,
            len(seeds),
        )
        for network, some in by_network.items()
    ]


def _union(names: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for some in names for name in some))
