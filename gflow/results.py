"""Every sentence that the outcome of a run can have."""

from typing import Any

import diffrax
import jax


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """How a run ended. `RESULTS[result]` is a sentence, empty for `RESULTS.successful`.

    Extends `diffrax.RESULTS`; a numerical outcome is always one of these members in the object that
    is returned, and is raised as an error only where `throw=True`.
    """

    step_budget_spent = (
        "The step budget `max_steps` was spent before what was asked for was reached. What was "
        "computed is kept. Where the smallest margin is not positive, the examples are not "
        "separated yet. The steps of an explicit solver shrink like 1/kappa, and with kinks (FGSM "
        "without smoothing, plain ReLU, an attack that switches off the last neuron of an example) "
        "those of any solver further still: ask for less, raise `max_steps`, smooth the kink, or "
        "choose an implicit solver. `gflow.integrate(problem, trajectory, ...)` goes on "
        "from where a flow ended, `gflow.find_limit(problem, limit)` from where a search did."
    )
    seconds_spent = (
        "The seconds that `max_seconds` allows were spent before what was asked for was reached. "
        "What was computed is kept; a flow goes on from there with "
        "`gflow.integrate(problem, trajectory, ...)`, a search with `gflow.find_limit(problem, "
        "limit)`."
    )
    chattering = (
        "The flow chatters: it slides along kinks (plain ReLU, signs of FGSM, a neuron that "
        "switches under an attack with `gradient='total'`), which the solver crosses to and fro, "
        "or clings to, in ever shorter steps. More steps would hardly lead on, so that the run was "
        "stopped, or its budget was spent. What was computed is kept; `stats['num_chattering']` "
        "counts the examples. Smooth the kinks (`fgsm(radius, smoothing=...)`, "
        "`mlp(..., smoothing=...)`), or go to the limit with `gflow.find_limit`, which does and "
        "then leads the smoothing to 0."
    )
    step_underflow = (
        "The step size underflowed: the flow meets a kink or a discontinuity that the solver "
        "cannot cross. Smooth it (`fgsm(radius, smoothing=...)`, `mlp(..., smoothing=...)`)."
    )
    not_finite = (
        "A NaN or an infinity appeared in the flow. The points before it are kept. This usually "
        "means that the network overflows on its unit sphere or divides by zero."
    )
    kappa_overflow = (
        "kappa left the range of floating-point numbers (log kappa > 700) before what was asked "
        "for was reached. Ask for a smaller `log_kappa`, or for a log-loss or a time."
    )
    not_separated = (
        "The examples were never separated: the smallest margin is still negative or zero, and the "
        "flow rests, fades away, or no longer lowers the loss. For clean data this means that the "
        "network cannot fit these labels from this start; try a wider network, another "
        "initialisation, or a longer run. Under an attack the radius may be above any margin: try "
        "a smaller one."
    )
    radius_above_margin = (
        "The clean examples are separated but the perturbed ones never were, and the flow rests, "
        "fades away, or no longer lowers the loss: the radius exceeds the margin that the network "
        "reached. Try a smaller radius (for linear networks "
        "`gflow.max_margin` tells the largest feasible one) or a longer run."
    )
    interrupted = "The run was interrupted from the keyboard. What was computed is kept."
    saddle = (
        "A KKT point was reached at which the flow does not stay: it leaves it in the end, "
        "after a time that grows without bound as it comes closer. `find_limit(escape=True)` "
        "follows it; with that set, the number of saddles exceeded `max_rounds`, or the saddle "
        "lies at kinks (`.kinks`) from which no step of the flow could be solved, or to which the "
        "flow along the kinks came back twice."
    )
    degenerate = (
        "A KKT point was reached whose second derivatives vanish in some direction that is no "
        "symmetry, or depend on coefficients at kinks that nothing determines (then "
        "`.curvature.undecided` names them): whether the flow stays there, and whether it is a "
        "maximum of the margin, cannot be told from them."
    )
    not_polished = (
        "Newton's method on the KKT system did not converge from where the flow stopped. This "
        "usually means a kink (FGSM without smoothing, plain ReLU): smooth it, or judge the end of "
        "the flow by `gflow.certify`."
    )
    not_certified = (
        "The search ended at a point whose certificate does not hold: a margin is not positive, "
        "the stationarity exceeds the tolerance, or a number is not finite. This usually means a "
        "tolerance below what rounding allows, or, at kinks, that the attack leaves no positive "
        "margin there. See `.certificate`."
    )
    not_at_kink = (
        "No limit at the kinks was reached (plain ReLU, signs of FGSM, ties of max pooling). The "
        "flow was followed with its kinks rounded to some relative width; from where it stopped, "
        "smoothing could not be led to 0: the branch of KKT points ends or turns before, or none "
        "was found, and the flow along the kinks was lost. Returned is the last point, at the "
        "width `.smoothing`: do not read more into its direction than the certificate's "
        'stationarity says; `.kinks` names the kinks there. A stage "circling" says that the '
        "flow with rounded kinks did not come to rest, as with frozen perturbations it may not. Of "
        "problems with more than 10 000 parameters only limits at no kink are found."
    )
    drifting = (
        "The flow had not come to rest where the search stopped: it drifts, and no KKT point is "
        "near. With frozen perturbations it is no gradient flow, and need not rest. The stage "
        '"drift" tells how far it was followed at infinite kappa (`log_growth`, by how much '
        "log |params| grew) and its speed at the end (`stationarity`, how far the direction moves "
        "while the norm grows by a factor e). The direction returned lies on the way: no limit."
    )
    circling = (
        "The direction has no limit: as far as it was followed, the flow circles without coming to "
        "rest, as with frozen perturbations, where it is no gradient flow, it may. The stage "
        '"circling" tells how many turns were seen, their mean radius, the speed, and the smallest '
        'margin on the way. With `gradient="total"`, a smaller radius, or wider smoothed signs the '
        "flow comes to rest."
    )
    decided_by_rounding = (
        "A point that nothing leaves was reached (`verdict` says of which kind), but on the way "
        "the flow met a saddle to within rounding: which way it left, and so which of several such "
        "points it reached, rounding decided."
    )
    diverged = (
        "Descent left the range of floating-point numbers. The step size is too large for this "
        "problem; the points before it are kept."
    )


SUCCESS = "The run reached what was asked for."

NAMES = (
    "successful",
    "step_budget_spent",
    "seconds_spent",
    "chattering",
    "step_underflow",
    "not_finite",
    "kappa_overflow",
    "not_separated",
    "radius_above_margin",
    "interrupted",
    "saddle",
    "degenerate",
    "not_polished",
    "not_certified",
    "not_at_kink",
    "drifting",
    "circling",
    "decided_by_rounding",
    "diverged",
)
"""The outcomes that a run of gflow can have."""


STOPPED = ("interrupted", "seconds_spent")
"""Those of a run that was stopped from outside, and would have gone on."""


def code_of(result: Any) -> int:
    """The number of an outcome: where two are compared by `==`, JAX runs a program."""
    return int(jax.tree.leaves(result)[0])


def name_of(result: RESULTS) -> str:
    """The name of an outcome."""
    # Not by comparing members, each of which is an operation of JAX.
    return _NAME_OF[code_of(result)]


_NAME_OF = {code_of(getattr(RESULTS, name)): name for name in NAMES}


def message_of(result: RESULTS) -> str:
    """The sentence of an outcome."""
    return RESULTS[result] or SUCCESS


class Outcome:
    """What has a `result`, in words.

    Attributes:
        result: a member of `RESULTS`.
    """

    result: RESULTS

    @property
    def result_name(self) -> str:
        """The name of `result` in `RESULTS`."""
        return name_of(self.result)

    @property
    def message(self) -> str:
        """The outcome as a sentence."""
        return message_of(self.result)
