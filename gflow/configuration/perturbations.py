"""Tables of perturbations."""

from typing import Annotated, Literal

from pydantic import Field

from gflow.configuration.values import (
    MOST_STEPS,
    BallOrder,
    Name,
    NotNegative,
    Order,
    Positive,
    Radius,
    Seed,
    Table,
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
    num_steps: int = Field(default=10, ge=1, le=MOST_STEPS, description="number of steps")
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


Perturbation = Annotated[Clean | Fgm | Fgsm | Pgd, Field(discriminator="kind")]
