"""Tables of how a job follows the flow: targets, solver, limits, training by steps."""

from typing import Literal

from pydantic import Field, model_validator

from gflow.configuration.values import Count, Positive, Seed, Table, Tolerance


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
