"""What `gflow run` can be told: every field, its meaning, its default, and what it may hold.

The defaults are the main job. Nothing here imports JAX, so that a wrong field is refused at once.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

ONE, MANY = "<one>", "<many>"
"""What Pydantic's locations call the two forms of a field that takes a value or a list of them."""


def _form(value: Any) -> str:
    return MANY if isinstance(value, list) else ONE


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("the values must differ")
    return values


def _ball_order(order: float) -> float:
    if order not in (1.0, 2.0, float("inf")):
        raise ValueError("projections exist for 1, 2 and inf")
    return order


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# JAX and NumPy make their generators of 64 bits.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Far larger than any that was ever trained, and small enough to be compiled.
_MOST_LAYERS = 100
_MOST_STEPS = 10_000
_MOST_WINDOW = 10_000
_MOST_CASES = 1000
Seeds = Annotated[
    Annotated[Seed, Tag(ONE)]
    | Annotated[
        list[Seed],
        Field(min_length=1, max_length=_MOST_CASES),
        AfterValidator(_distinct),
        Tag(MANY),
    ],
    Discriminator(_form),
]
Radius = Annotated[
    Annotated[NotNegative, Tag(ONE)]
    | Annotated[
        list[NotNegative],
        Field(min_length=1, max_length=_MOST_CASES),
        AfterValidator(_distinct),
        Tag(MANY),
    ],
    Discriminator(_form),
]
Widths = Annotated[list[Count], Field(max_length=_MOST_LAYERS)]
Window = Annotated[int, Field(ge=1, le=_MOST_WINDOW)]
Tolerance = Annotated[float, Field(ge=1e-14, le=0.1)]
Power = Annotated[float, Field(ge=1, le=100)]
Digit = Annotated[int, Field(ge=0, le=9)]
# TOML has no paths, only strings.
FilePath = Annotated[Path, Field(strict=False)]
# TOML writes infinity as `inf`.
Order = Annotated[float, Field(ge=1, allow_inf_nan=True)]
BallOrder = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_ball_order)]
Name = Annotated[str, Field(min_length=1, max_length=60)]


class Table(BaseModel):
    """One table of the configuration: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Digits(Table):
    """scikit-learn's 8 x 8 handwritten digits, two classes, pixels in [0, 1]."""

    kind: Literal["digits"] = "digits"
    positive: Digit = Field(default=3, description="the digit labelled +1")
    negative: Digit = Field(default=8, description="the digit labelled -1")
    limit: int | None = Field(
        default=None,
        ge=2,
        description="train on so many examples, as many of each digit; the others are held out",
    )


class Mnist(Table):
    """MNIST, two classes, 28 x 28 pixels in [0, 1]."""

    kind: Literal["mnist"] = "mnist"
    path: FilePath | None = Field(
        default=None,
        description="folder with the four IDX files, plain or .gz; without it the environment "
        "variable GFLOW_DATA, and without that scikit-learn fetches them",
    )
    positive: Digit = Field(default=3, description="the digit labelled +1")
    negative: Digit = Field(default=7, description="the digit labelled -1")
    limit: int | None = Field(default=None, ge=2, description="use the first so many examples")
    split: Literal["train", "test"] = Field(
        default="train", description="which part of MNIST; of train, test is held out"
    )


class Gaussian(Table):
    """Normal points labelled by a random hyperplane, moved away from it."""

    kind: Literal["gaussian"] = "gaussian"
    n: int = Field(default=40, ge=2, description="number of examples")
    d: Count = Field(default=5, description="number of inputs")
    gap: NotNegative = Field(default=0.5, description="distance by which points are moved apart")
    seed: Seed = Field(default=0, description="seed of the points")


class RandomLabels(Table):
    """Points on the unit sphere whose labels have nothing to do with them."""

    kind: Literal["random_labels"] = "random_labels"
    n: int = Field(default=20, ge=2, description="number of examples")
    d: Count = Field(default=20, description="number of inputs")
    seed: Seed = Field(default=0, description="seed of the points and labels")


class Soudry(Table):
    """Points in the plane with max-margin direction (1, 1)/sqrt(2) (Soudry et al. 2018)."""

    kind: Literal["soudry"] = "soudry"
    num_random: int = Field(default=12, ge=0, multiple_of=2, description="points beyond the margin")
    seed: Seed = Field(default=0, description="seed of those points")


class Npz(Table):
    """Your own data: arrays x (n, d) and y (n,) in a NumPy .npz file; y in {-1, +1} or 0 .. k-1."""

    kind: Literal["npz"] = "npz"
    path: FilePath = Field(description="the file, relative to the configuration file")
    x: Name = Field(default="x", description="name of the array of inputs")
    y: Name = Field(default="y", description="name of the array of labels")
    held_out: FilePath | None = Field(
        default=None, description="a file like it, of examples held out to tell the accuracy"
    )


class Csv(Table):
    """Your own data: one example a line, numbers only; labels in {-1, +1} or 0 .. k-1."""

    kind: Literal["csv"] = "csv"
    path: FilePath = Field(description="the file, relative to the configuration file")
    label: int = Field(default=-1, description="column of the label: 0 is the first, -1 the last")
    delimiter: str = Field(
        default=",", min_length=1, max_length=1, description="what parts the columns"
    )
    skip_lines: int = Field(default=0, ge=0, description="lines to skip first, such as a header")
    held_out: FilePath | None = Field(
        default=None, description="a file like it, of examples held out to tell the accuracy"
    )


class NetworkTable(Table):
    """What networks of every kind have; inputs and outputs follow from the data."""

    name: Name | None = Field(default=None, description="what tables and figures call it")
    scale: Positive = Field(
        default=1.0,
        description="initial weights are normal, standard deviation scale / sqrt(fan_in)",
    )


class Linear(NetworkTable):
    """f(x) = <w, x>, degree 1."""

    kind: Literal["linear"] = "linear"


class DeepLinear(NetworkTable):
    """f(x) = W_L ... W_1 x, degree L: the number of layers."""

    kind: Literal["deep_linear"] = "deep_linear"
    hidden: Widths = Field(default=[16, 16], description="widths of the hidden layers")


class Mlp(NetworkTable):
    """Multi-layer perceptron with the activation ReLU^k."""

    kind: Literal["mlp"] = "mlp"
    hidden: Widths = Field(default=[32], description="widths of the hidden layers")
    power: Power = Field(default=1.0, description="the k of ReLU^k")
    smoothing: NotNegative = Field(
        default=0.0,
        description="mu: the kink of ReLU rounded to relative width mu, homogeneity kept",
    )
    bias: bool = Field(default=False, description="a constant input 1 for the first layer")


class Diagonal(NetworkTable):
    """f(x) = <u^L - v^L, x>, powers by coordinate; it starts at u = v = scale."""

    kind: Literal["diagonal"] = "diagonal"
    depth: int = Field(default=2, ge=1, le=_MOST_LAYERS, description="the degree L")


class Conv(NetworkTable):
    """Convolutional network with the activation ReLU^k: convolutions, then dense layers."""

    kind: Literal["conv"] = "conv"
    input_shape: list[Count] | None = Field(
        default=None,
        min_length=3,
        max_length=3,
        description="[channels, height, width] of an example; a square image of one channel "
        "without it",
    )
    channels: list[Count] = Field(
        default=[8],
        min_length=1,
        max_length=_MOST_LAYERS,
        description="number of filters of each convolution",
    )
    size: Window = Field(default=3, description="height and width of the filters")
    stride: Window = Field(default=1, description="step between the windows of a convolution")
    padding: Literal["SAME", "VALID"] = Field(
        default="SAME", description="SAME: zeros around the image; VALID: windows within the image"
    )
    pool: Literal["none", "max", "average"] = Field(
        default="none", description="pooling after each convolution"
    )
    pool_size: Window = Field(default=2, description="height, width and step of pooled windows")
    hidden: Widths = Field(
        default=[], description="widths of dense layers between the convolutions and the output"
    )
    power: Power = Field(default=1.0, description="the k of ReLU^k")
    smoothing: NotNegative = Field(
        default=0.0,
        description="mu: the kink of ReLU rounded to relative width mu, homogeneity kept; those of "
        "max pooling stay",
    )


class PerturbationTable(Table):
    """What perturbations of every kind have."""

    name: Name | None = Field(default=None, description="what tables and figures call it")


class Clean(PerturbationTable):
    """No perturbation: plain training."""

    kind: Literal["clean"] = "clean"


class Fgm(PerturbationTable):
    """Fast gradient method: one step along the steepest l_p direction of the margin."""

    kind: Literal["fgm"] = "fgm"
    radius: Radius = Field(description="length in the l_p norm, in units of the inputs")
    order: Order = Field(default=2.0, description="p, from 1 to inf")


class Fgsm(PerturbationTable):
    """Fast gradient sign method: one l_inf step along the sign of the margin's gradient."""

    kind: Literal["fgsm"] = "fgsm"
    radius: Radius = Field(description="length in the l_inf norm, in units of the inputs")
    smoothing: NotNegative = Field(
        default=0.0, description="mu: sign(g) rounded to relative width mu"
    )


class Pgd(PerturbationTable):
    """Projected gradient descent on the margin, steps of fixed length."""

    kind: Literal["pgd"] = "pgd"
    radius: Radius = Field(description="radius of the l_p ball, in units of the inputs")
    order: BallOrder = Field(default=float("inf"), description="p: 1, 2 or inf")
    num_steps: int = Field(default=10, ge=1, le=_MOST_STEPS, description="number of steps")
    step_size: Positive | None = Field(
        default=None, description="length of a step; 2.5 radius / num_steps without it"
    )
    random_start: Seed | None = Field(
        default=None, description="seed of a fixed random start; a start from 0 without it"
    )
    box: list[float] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="[low, high], the range that perturbed inputs keep, such as [0, 1] for pixels",
    )
    smoothing: NotNegative = Field(
        default=0.0, description="mu, for order inf: sign(g) rounded to relative width mu"
    )


class UntilTable(Table):
    """How far the flow is followed: to the first of these; at least one is needed."""

    log_loss: float | None = Field(
        default=None, description="log of the loss, summed over examples, natural logarithm"
    )
    log_kappa: float | None = Field(
        default=None, le=700, description="log of |params|^L, the scale of the margins"
    )
    time: Positive | None = Field(
        default=None, description="time t of the flow d params/dt = -grad Loss"
    )
    stationarity: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="sine of the angle between u and sum_i p_i grad q_i(u)",
    )
    logits: Positive | None = Field(
        default=None, description="the smallest margin kappa min_i q_i(u) of the parameters"
    )

    @model_validator(mode="after")
    def _one_at_least(self):
        if all(value is None for value in self.model_dump().values()):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


class SolverTable(Table):
    """How the flow is integrated."""

    name: Literal[
        "automatic",
        "rosenbrock",
        "runge_kutta_chebyshev",
        "tsit5",
        "dopri8",
        "kvaerno3",
        "kvaerno5",
    ] = Field(
        default="automatic",
        description="automatic: tsit5, and rosenbrock once the flow is stiff; rosenbrock: linearly "
        "implicit, the method of the limit; runge_kutta_chebyshev: stabilised explicit; tsit5, "
        "dopri8: explicit; kvaerno3, kvaerno5: implicit, whose steps cost far more and rarely are "
        "fewer",
    )
    tolerance: Tolerance = Field(default=1e-7, description="error a step may make, relative")
    rtol_direction: Tolerance | None = Field(
        default=None, description="error a step may make in the direction; tolerance without it"
    )
    atol_logit: Positive = Field(
        default=0.1, description="error a step of rosenbrock may make in the logits"
    )
    kappa_cap: Positive | None = Field(
        default=None, description="a kappa at which the temperature stays; the true flow without it"
    )
    max_steps: Count = Field(default=20_000, description="steps after which a run is given up")
    max_seconds: Positive | None = Field(
        default=None, description="seconds after which the flow of a run is given up"
    )
    save: int = Field(default=256, ge=2, description="points that a trajectory keeps, at most")


class LimitTable(Table):
    """The limit of each run's direction, found from where its flow ends."""

    enabled: bool = Field(default=True, description="whether the limit is sought at all")
    tolerance: float = Field(
        default=1e-8, ge=1e-15, le=0.1, description="relative stationarity of the limit"
    )
    cap_logits: float = Field(
        default=1e3,
        ge=10,
        le=1e10,
        description="the true flow is followed until its smallest margin is so large; from there "
        "on its temperature is capped",
    )
    flow_tolerance: float = Field(
        default=1e-5, ge=1e-12, le=0.1, description="error a step of that flow may make"
    )
    smoothing: float = Field(
        default=0.02,
        ge=1e-3,
        le=1,
        description="relative width to which kinks are rounded on the way; it is led to 0",
    )
    escape: bool = Field(default=True, description="leave saddles, as the flow does in the end")
    reproduce: bool = Field(
        default=False,
        description="search again with a tighter tolerance and with a colder cap, to see whether "
        "the limit is the same",
    )
    max_rounds: Count = Field(default=16, description="saddles to leave at most")
    max_steps: Count = Field(default=5000, description="steps of each run of the flow at most")
    max_seconds: Positive | None = Field(
        default=None, description="seconds after which the search of a run is given up"
    )


class DescentTable(Table):
    """Training by steps beside each run: gradient descent from the start of its flow."""

    enabled: bool = Field(default=False, description="whether it is done at all")
    step_size: Positive = Field(
        default=0.01, description="of constant steps along the gradient of the loss"
    )
    num_steps: Count = Field(default=10_000, description="number of steps")
    batch_size: int | None = Field(
        default=None, ge=1, description="examples of a step, drawn anew; all without it"
    )
    sampling: Literal["shuffled", "replacement"] = Field(
        default="shuffled",
        description="shuffled: every example once an epoch; replacement: batches drawn apart",
    )
    mean: bool = Field(
        default=False,
        description="steps on the mean loss, for which published step sizes are meant, rather than "
        "on the sum",
    )
    seed: Seed = Field(default=0, description="seed of the batches")


Data = Annotated[
    Digits | Mnist | Gaussian | RandomLabels | Soudry | Npz | Csv, Field(discriminator="kind")
]
Network = Annotated[Linear | DeepLinear | Mlp | Diagonal | Conv, Field(discriminator="kind")]
Perturbation = Annotated[Clean | Fgm | Fgsm | Pgd, Field(discriminator="kind")]

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
        default=MAIN_NETWORKS, min_length=1, max_length=_MOST_CASES, description="the networks"
    )
    perturbation: list[Perturbation] = Field(
        default=MAIN_PERTURBATIONS,
        min_length=1,
        max_length=_MOST_CASES,
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
        if count > _MOST_CASES:
            raise ValueError(f"the lists ask for {count} runs; at most {_MOST_CASES} are made")
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
