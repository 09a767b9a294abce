"""The whole configuration of a job, whose defaults are the main job."""

from typing import Literal

from pydantic import Field, model_validator

from gflow.configuration.data import Data, Digits
from gflow.configuration.methods import DescentTable, LimitTable, SolverTable, UntilTable
from gflow.configuration.networks import DeepLinear, Mlp, Network
from gflow.configuration.perturbations import Clean, Fgm, Fgsm, Perturbation, Pgd
from gflow.configuration.values import MOST_CASES, Positive, Seeds, Table

MAIN_NETWORKS: list[Network] = [
    DeepLinear(name="deep linear", hidden=[8, 8]),
    Mlp(name="ReLU MLP", hidden=[8], smoothing=0.05),
    Mlp(name="ReLU^2 MLP", hidden=[8], power=2.0),
]
MAIN_PERTURBATIONS: list[Perturbation] = [
    Clean(name="clean"),
    Fgm(name="l2-FGM", radius=0.3),
    Fgsm(name="linf-FGSM", radius=0.05, smoothing=0.2),
    Pgd(name="l2-PGD", radius=0.3, order=2.0, num_steps=5),
    Pgd(name="linf-PGD", radius=0.05, num_steps=5, smoothing=0.2),
]
# The method and the tolerance of the search for the limit, whose programs then serve both.
MAIN_SOLVER = SolverTable(name="rosenbrock", tolerance=1e-5)


class Configuration(Table):
    """One job: every network under every perturbation, from every seed."""

    seed: Seeds = Field(
        default=0, description="seed of the initial weights, or a list: one run for each"
    )
    loss: Literal["exponential", "logistic"] = Field(
        default="logistic", description="loss of one margin; a data set's loss is the sum"
    )
    gradient: Literal["frozen", "total"] = Field(
        default="frozen",
        description="frozen: the perturbation is held fixed while differentiating, as adversarial "
        "training does; total: differentiate through it",
    )
    rivals: Literal["worst", "runner_up", "each"] = Field(
        default="worst",
        description="what an attack lowers with three classes or more: worst: of the attacks "
        "against each rival class, the one that leaves the smallest margin; runner_up: the "
        "smallest margin at every gradient; each: every margin by an attack of its own",
    )
    max_seconds: Positive | None = Field(
        default=600.0,
        description="seconds for the whole job, of which each run has a share: what one does not "
        "need the next ones get. A run that has not arrived by then has no verdict",
    )
    data: Data = Field(default=Digits(limit=40), description="the examples")
    network: list[Network] = Field(
        default=MAIN_NETWORKS, min_length=1, max_length=MOST_CASES, description="the networks"
    )
    perturbation: list[Perturbation] = Field(
        default=MAIN_PERTURBATIONS,
        min_length=1,
        max_length=MOST_CASES,
        description="the perturbations, under which is trained and by which is attacked; a list of "
        "radii stands for as many perturbations",
    )
    until: UntilTable = Field(
        default=UntilTable(log_loss=-10.0),
        description="how far the flow is followed before the limit is sought; runs are compared "
        "at equal loss there",
    )
    solver: SolverTable = Field(default=MAIN_SOLVER, description="how the flow is integrated")
    limit: LimitTable = Field(default=LimitTable(), description="the search for the limit")
    descent: DescentTable = Field(
        default=DescentTable(),
        description="training by steps beside each run, from the same start under the same attack",
    )

    @model_validator(mode="after")
    def _not_too_many(self):
        count = len(self.network) * len(self.attacks) * len(self.seeds)
        if count > MOST_CASES:
            raise ValueError(f"the lists ask for {count} runs; at most {MOST_CASES} are made")
        return self

    @property
    def seeds(self) -> list[int]:
        """The seeds, as a list."""
        return self.seed if isinstance(self.seed, list) else [self.seed]

    @property
    def attacks(self) -> list[Perturbation]:
        """The perturbations, one for each radius that is asked for."""
        return [one for table in self.perturbation for one in _by_radius(table)]

    @property
    def num_runs(self) -> int:
        """Every network under every perturbation from every seed."""
        return len(self.network) * len(self.attacks) * len(self.seeds)


def _by_radius(table: Perturbation) -> list[Perturbation]:
    """One perturbation for each radius, named by it where there are several."""
    radius = getattr(table, "radius", None)
    if not isinstance(radius, list):
        return [table]
    name = table.name or table.kind
    return [
        table.model_copy(
            update={"radius": one, "name": f"{name} {one:g}" if len(radius) > 1 else table.name}
        )
        for one in radius
    ]


def labels(tables: list[Network] | list[Perturbation]) -> list[str]:
    """What to call each network or perturbation: its name, or its kind, numbered if repeated."""
    names = [table.name or table.kind.replace("_", " ") for table in tables]
    return [
        f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
