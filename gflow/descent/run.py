"""`descend`: the arguments, the loop over compiled segments, and what a run leaves."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gflow._batches import Batches, Sampling, check_batches
from gflow._checks import is_integer, one_of
from gflow._description import encode_structure
from gflow._interrupts import interruptible
from gflow._layout import Layout
from gflow._signatures import named
from gflow._typing import Params
from gflow.deadline import Deadline
from gflow.descent.batch import Objective, Rules
from gflow.descent.history import History, HistoryMemory, capacity, finite_part, measured
from gflow.descent.keeping import Place, content_of, finished, finished_trajectory, place_of
from gflow.descent.reading import read_between
from gflow.descent.stepping import advance, begin
from gflow.problem import Problem
from gflow.progress import check_progress, reporter
from gflow.record import steps_within_work
from gflow.results import RESULTS, STOPPED, name_of
from gflow.saving import Saving, saving_to
from gflow.trajectory import RunFailed, Trajectory
from gflow.validation import check_problem, check_start

# Batches that are drawn at a time, in examples: a table of 4 MB.
_DRAWN = 2**20
# Each segment is so many times as long as the one before.
_GROWTH = 4


@named(optimizer="Any optax transformation, such as `optax.sgd(0.1)`.")
@interruptible
def descend(
    problem: Problem,
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    objective: Objective = "loss",
    batch_size: int | None = None,
    sampling: Sampling = "shuffled",
    seed: int = 0,
    mean: bool = False,
    save: int | None = 512,
    max_seconds: float | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = True,
) -> Trajectory:
    """Training by steps: `params <- params + update`, `num_steps` times.

    Margins, losses and weights are in logarithms, as in the flow, so that a run can be compared
    with it however small the loss.

    The gradient of a step is that of `Loss = sum_i l(q_i)`, over all n examples or estimated from a
    batch of B: `n / B` times the gradient of the batch's own sum, which is the full gradient on
    average. The perturbations of its examples are made once, at the parameters of the step.

    The time of a step is its length along the negative gradient of the loss that the step sees,
    `dt = <update, -grad Loss> / |grad Loss|^2`: the step size for plain gradient descent, the step
    size over n with `mean=True`, the step size over the loss for descent on the log-loss. Steps
    against the gradient, and on a batch without one, take no time. What is recorded of a point is
    that of all examples.

    Args:
        problem: what is minimised.
        params: the start.
        optimizer: any optax transformation, such as `optax.sgd(0.1)`, with any schedule, or
            `gflow.optimizers.loss_based`. Those that look at the
            objective itself (`optax.lbfgs`, `optax.polyak_sgd`, `optax.contrib.reduce_on_plateau`)
            are given its `value`, its `grad` and `value_fn`, whose gradient is that of the
            problem's mode; of a batch, where there are batches. Polyak's steps suppose that the
            least value is 0, as for "loss" it is.
            A new optimizer, even of the same kind, is compiled anew.
        num_steps: number of steps.
        objective: "loss" hands the optimizer `grad Loss` (the loss is a sum over examples);
            "log_loss" hands it `grad Loss / Loss`, which is descent normalised by the loss, however
            far that is below the smallest floating-point number.
        batch_size: B, the examples of a step; None for all. A batch may lack one of the classes.
        sampling: "shuffled" goes through all examples in a new random order every epoch, in
            `ceil(n / B)` steps, the last of which may have fewer examples than B. "replacement"
            draws the examples of every step independently. The batches are those of
            `Dataset.batches`.
        seed: of the batches.
        mean: whether the objective is that of the mean loss, `Loss / n`, for which most published
            step sizes are meant. Steps h on the mean are steps h / n on the sum.
        save: the number of points kept at most, evenly spread over the steps; None keeps all.
        max_seconds: after so many seconds the run ends, with the result `seconds_spent`. Looked at
            between compiled segments of about a second at most. None for no limit.
        checkpoint: a file, `.npz`, in which the run is kept while it goes on, with the optimizer's
            state and that of the batches; the same call goes on from there, bit for bit. As in
            `gflow.integrate`. An optimizer is the same where its functions have the same code and
            hold the same values.
        checkpoint_seconds: between two times that it is written, as in `gflow.integrate`.
        progress: as in `gflow.integrate`.
        throw: raise `RunFailed` on divergence, and where the seconds were spent; False returns the
            trajectory.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`; unknown or impossible options; an
            optimizer that needs other arguments still, or that is made for another objective.
        ValueError, RuntimeError, OSError: `checkpoint`, see `gflow.integrate`.
        RunFailed: with `throw=True`, a run that left the range of floating-point numbers, or that
            spent its seconds.
    """
    check_problem(problem)
    _check_options(optimizer, num_steps, objective, save)
    batches = _batch_options(batch_size, sampling, seed, len(problem.dataset))
    check_progress(progress, "descend")
    deadline = Deadline.after(max_seconds, "descend")
    settings = {
        "num_steps": int(num_steps),
        "objective": objective,
        **batches,
        "mean": mean,
        "save": None if save is None else int(save),
        "gradient": problem.gradient_mode,
    }
    params = check_start(problem, params)
    call = _Call(problem, optimizer, Layout.of(params), settings)
    arguments = partial(_arguments_of, call, params)
    with saving_to(checkpoint, checkpoint_seconds, "descend", arguments) as saving:
        trajectory = _kept(call, params, deadline, progress, saving)
    if throw and trajectory.result_name in ("diverged", "seconds_spent"):
        raise RunFailed(trajectory)
    return trajectory


def _batch_options(batch_size: Any, sampling: Any, seed: Any, num_examples: int) -> dict[str, Any]:
    """The options of mini-batches as plain values."""
    check_batches("descend", 1 if batch_size is None else batch_size, sampling, seed, num_examples)
    size = None if batch_size is None else int(batch_size)
    return {"batch_size": size, "sampling": sampling, "seed": int(seed)}


class _Call(NamedTuple):
    """What is done at every step, and to what."""

    problem: Problem
    optimizer: optax.GradientTransformation
    layout: Layout
    settings: dict[str, Any]

    def batches(self) -> Batches | None:
        """The mini-batches of the run."""
        size = self.settings["batch_size"]
        if size is None:
            return None
        count = len(self.problem.dataset)
        return Batches(count, size, self.settings["sampling"], self.settings["seed"])


def _arguments_of(call: _Call, params: Params) -> dict[str, Any]:
    """What decides a run: equal for calls that make the same one.

    Raises:
        TypeError: parameters that a file cannot hold.
    """
    encode_structure(params)
    problem, optimizer = call.problem, call.optimizer
    return {"problem": problem, "params": params, "optimizer": optimizer, **call.settings}


def _kept(
    call: _Call, params: Params, deadline: Deadline, progress: Any, saving: Saving
) -> Trajectory:
    """The run of a call, from its beginning or from where it was kept."""
    content, begun = saving.content, time.perf_counter()
    if content is not None and content.finished:
        with saving.reading():
            return finished_trajectory(call.problem, content)
    place = Place(begin(params, call.optimizer), HistoryMemory())
    if content is not None:
        with saving.reading():
            place = place_of(content, place.point)
    run = _Run(call, place, saving, begun)
    trajectory = run.trajectory(run.go(deadline, progress))
    stopped = trajectory.result_name in STOPPED
    saving.offer(lambda: content_of(run.place) if stopped else finished(trajectory), now=True)
    return trajectory


class _Run:
    """A run on the host: segments of steps, each `_GROWTH` times as long as the one before.

    Attributes:
        place: where the last segment ended.
    """

    def __init__(self, call: _Call, place: Place, saving: Saving, begun: float):
        self._call, self._saving, self.place = call, saving, place
        self._begun, self._before = begun, place.seconds
        self._history = History(call.settings["save"], place.history)
        self._batches = call.batches()
        self._table: jax.Array | None = None
        if self._batches is not None and place.generator is not None:
            self._batches.go_to(place.generator)
            self._table = _drawn(self._batches)

    def go(self, deadline: Deadline, progress: Any) -> RESULTS:
        """Runs segments to the last step, or until one ends the run, and says how it ended."""
        problem, _, layout, settings = self._call
        made, num_steps = int(self.place.point.num_steps), settings["num_steps"]
        try:
            with reporter(progress, "descent") as report:
                while made < num_steps:
                    made = self._segment(made)
                    if progress is not False:
                        report(self._history.status(problem, layout))
                    if not bool(self.place.point.finite):
                        return RESULTS.diverged
                    if made < num_steps:
                        self._saving.offer(lambda: content_of(self.place))
                        if deadline.passed():
                            return RESULTS.seconds_spent
        except KeyboardInterrupt:
            if not made:  # nothing was computed that could be returned
                raise
            return RESULTS.interrupted
        return RESULTS.successful  # pyright: ignore[reportReturnType]

    def _segment(self, made: int) -> int:
        """One compiled segment; the steps made up to its end."""
        problem, optimizer, layout, settings = self._call
        point, length, history = self.place.point, self.place.length, self._history
        batches, first, generator = self._batches, self.place.first, self.place.generator
        drawn = settings["num_steps"]
        if batches is not None:
            if self._table is None or made == first + len(self._table):
                generator, first = batches.state, made
                self._table = _drawn(batches)
            drawn = first + len(self._table)
        rules = Rules(settings["objective"], settings["mean"], bool(batches and batches.ragged))
        rows, examples = capacity(layout.size), settings["batch_size"] or len(problem.dataset)
        gradients = 1.0 + problem.perturbation.num_gradients
        most = steps_within_work(layout.size, examples, gradients, rows * history.stride)
        budget = np.int64(min(length, most, settings["num_steps"] - made, drawn - made))
        given = (problem, optimizer, rules, layout, point, budget, np.int64(history.stride))
        after = advance(*given, self._table, np.int64(first), rows)
        point, saved, count = jax.block_until_ready(after)
        history.extend(saved, int(count))
        seconds = self._before + time.perf_counter() - self._begun
        self.place = Place(point, history.memory(), _GROWTH * length, first, generator, seconds)
        return int(point.num_steps)

    def trajectory(self, result: RESULTS) -> Trajectory:
        """What the run leaves."""
        problem, _, layout, settings = self._call
        columns, vectors = measured(problem, layout, self._history.all())
        if name_of(result) == "diverged":
            columns, vectors = finite_part(columns, vectors)
        made = int(columns["num_steps_at"][-1])
        return Trajectory(
            kind="descent",
            reader=read_between,
            columns=columns,
            vectors=vectors,
            layout=layout,
            problem=problem,
            result=result,
            stats={
                "num_steps": made,
                "num_accepted_steps": made,
                "num_rejected_steps": 0,
                "stopped_by": "num_steps" if name_of(result) == "successful" else None,
                "seconds": self._before + time.perf_counter() - self._begun,
            },
            settings=settings,
        )


def _drawn(batches: Batches) -> jax.Array:
    """The batches of the next epochs, on the device."""
    size = batches.per_epoch * batches.batch_size
    return jnp.asarray(batches.draw(max(1, _DRAWN // size)))


def _check_options(optimizer: Any, num_steps: Any, objective: Any, save: Any) -> None:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"`descend(optimizer={optimizer!r})` is no optax transformation, such as "
            "`optax.sgd(0.1)`."
        )
    if not is_integer(num_steps) or num_steps < 1:
        raise ValueError(f"`descend(num_steps={num_steps!r})` must be an integer of at least 1.")
    if not one_of(objective, ("loss", "log_loss")):
        raise ValueError(f"`descend(objective={objective!r})`: choose 'loss' or 'log_loss'.")
    if save is not None and (not is_integer(save) or save < 2):
        raise ValueError(f"`descend(save={save!r})` must be None or an integer of at least 2.")
    # `gflow.optimizers.loss_based` says what it takes its value for.
    made_for = getattr(optimizer.update, "objective", objective)
    if made_for != objective:
        raise ValueError(
            f"`descend(objective={objective!r})`: the optimizer is made for the objective "
            f"{made_for!r}. Give both the same."
        )
