"""Names for kinks: margins with every ReLU, every sign and every selection held at its own angle.

Where the network has plain ReLUs or max pooling, where the attack follows signs or the largest
coordinate of a gradient, or chooses among rival classes, the margins have kinks, and the flow
may end on them. At a kink the slope of a ReLU is no function of the parameters but a coefficient
between 0 and 1 of its own (Clarke); a sign lies between -1 and 1 there. Here each is written as an
angle phi in [-pi/2, pi/2]: the sign is `sin phi`, the slope of a ReLU `(1 + sin phi)/2`. With the
number v whose sign it is, and the scale w that v is measured against,

    v cos phi = mu w sin phi

is the equation of a *switch*. For mu > 0 its solution `sin phi` is the smoothed sign of v, the same
as that of `smoothed`. As mu -> 0 it becomes: either phi is +-pi/2, with the sign of v, or v is 0
and phi is free. So the same equations serve smoothed problems and exact kinks. The largest of
several values is selected by switches of the same kind (`gflow._selection`).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._programs import compiled_for_some_calls
from gflow._selection import select_smallest
from gflow._typing import Params
from gflow.networks import Decided
from gflow.problem import Problem, by_example
from gflow.rivals import margins_of_worst, own_margins

# A switch whose scale w is below this part of the largest scale belongs to a dead neuron: no slope
# matters there, and none is defined.
DEAD_SCALE = 1e-6
SETTLED, MOST_PASSES = 1e-12, 1000
"""Angles that change by less than the first have settled. They settle within a number of passes
that is the length of the longest chain of switches deciding each other, far below the second."""


class Passes(NamedTuple):
    """How many switches an example has.

    Attributes:
        num_attacks: perturbations of the example: against every rival class its own, or one.
        num_gradients: gradients that each attack takes.
        num_followed: switches of the network on which the gradient depends, at each gradient.
        num_network: switches of the network, at each perturbed input.
        num_rivals: switches that select the runner-up, at each gradient.
        num_steps: switches of the attack's step, at each gradient.
        num_choices: switches that choose the worst rival, once.
    """

    num_attacks: int
    num_gradients: int
    num_followed: int
    num_network: int
    num_rivals: int
    num_steps: int
    num_choices: int

    @property
    def gradients(self) -> tuple[int, int]:
        """Gradients taken: attacks, and those of each."""
        return self.num_attacks, self.num_gradients

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Switches of an example, in this order: of the margins whose gradients the attacks take;
        of their steps; of the choice of the worst rival; of the network at the perturbed inputs.
        """
        gradients = math.prod(self.gradients)
        return (
            gradients * (self.num_followed + self.num_rivals),
            gradients * self.num_steps,
            self.num_choices,
            self.num_attacks * self.num_network,
        )

    @property
    def size(self) -> int:
        """Switches of an example, all together."""
        return sum(self.parts)

    @property
    def jumps(self) -> bool:
        """Whether the attack jumps at its kinks: at others than those of `with_slope_switches`."""
        return self._replace(num_followed=self.num_network).num_under > 0

    @property
    def num_under(self) -> int:
        """Switches that the attack depends on: all but the last part."""
        return sum(self.parts[:-1])


def passes(problem: Problem) -> Passes:
    """The switches of one example; none where the problem is smooth, or its kinks unnamed."""
    perturbation, dataset = problem.perturbation, problem.dataset
    if not perturbation.has_named_kinks:
        return Passes(1, 0, 0, 0, 0, 0, 0)
    choices = max(dataset.num_outputs - 2, 0)
    rounded, gradients = problem.rival_smoothing is not None, perturbation.num_gradients
    return Passes(
        dataset.num_outputs - 1 if problem.separate else 1,
        gradients,
        problem.followed.num_switches,
        problem.network.num_switches,
        0 if problem.separate or rounded or not gradients else choices,
        perturbation.num_switches(dataset.x.shape[1]),
        choices if problem.rivals == "worst" and not rounded else 0,
    )


def has_kinks(problem: Problem) -> bool:
    """Whether the problem has kinks that can be named.

    Not named are those of a user's own network or perturbation, of projections onto a ball, and
    those of derivatives alone, such as the second ones of ReLU^2, unless the problem is one
    `with_slope_switches`.
    """
    return passes(problem).size > 0


def with_slope_switches(problem: Problem) -> Problem:
    """The problem with names for the kinks that an attack's gradient has though the network has
    none: those of the derivative of ReLU^2 where the weights are differentiated through the attack.
    The problem itself where there are none of these.

    The perturbation is along `g = grad_x f`, in which each ReLU^2 has its derivative `2 max(a, 0)`.
    So the margin has a kink where a is 0 at the input at which the gradient is taken, but does not
    jump: its gradients there are those with `2 c a` in place of the derivative, c in [0, 1]. With
    frozen perturbations delta has the kink, and the field none.
    """
    perturbation, network = problem.perturbation, problem.network.with_slope_switches()
    through = problem.gradient_mode == "total" and perturbation.num_gradients > 0
    if not (through and perturbation.has_named_kinks) or network is problem.network:
        return problem
    if problem.attacked_network is not None:
        return problem  # one with such names, or with these kinks rounded
    return eqx.tree_at(
        lambda p: p.attacked_network, problem, network, is_leaf=lambda leaf: leaf is None
    )


def named_for(problem: Problem, coefficients: np.ndarray) -> Problem:
    """The problem whose switches have coefficients of this shape: with those of
    `with_slope_switches` where it is theirs. Shape (n, s).
    """
    named = with_slope_switches(problem)
    return named if coefficients.shape[-1:] == (passes(named).size,) else problem


def smoothed(problem: Problem, smoothing: Any) -> Problem:
    """The problem with every named kink rounded to the relative width `smoothing` > 0."""
    width = np.asarray(smoothing, np.float64)
    found, attacked = passes(problem), problem.attacked_network
    twins = (
        problem.network.smoothed(width),
        problem.perturbation.smoothed(width),
        None if attacked is None else attacked.smoothed(width),
        width if found.num_rivals or found.num_choices else problem.rival_smoothing,
    )
    return eqx.tree_at(
        lambda p: (p.network, p.perturbation, p.attacked_network, p.rival_smoothing),
        problem,
        twins,
        is_leaf=lambda leaf: leaf is None,
    )


@compiled_for_some_calls
def settled_angles(problem: Problem, params: Params, smoothing: Any) -> Float[Array, "n s"]:
    """The angles at which every switch stands where its own value puts it.

    The switches of an attack decide at which point later switches are evaluated. So all angles are
    computed repeatedly, until none changes any more. At `smoothing` 0, a switch whose value is 0
    has the angle 0. Shape (n, s).
    """
    shape = len(problem.dataset.x), passes(problem).size
    smoothing = jnp.asarray(smoothing, float)

    def turned(carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        angles, _, count = carry
        decided = switched_margins(problem, params, params, angles, smoothing)[1]
        return jnp.arctan2(decided.values, smoothing * decided.scales), angles, count + 1

    def turning(carry: tuple[Array, Array, Any]) -> Array:
        angles, before, count = carry
        return (jnp.max(jnp.abs(angles - before)) > SETTLED) & (count < MOST_PASSES)

    start = turned((jnp.zeros(shape), jnp.zeros(shape), 0))
    return lax.while_loop(turning, turned, start)[0]


def switched_margins(
    problem: Problem, params: Params, free: Params, angles: Float[Array, "n s"], smoothing: Any
) -> tuple[Float[Array, "n ..."], Decided]:
    """Margins with every switch at its angle, and what decides the switches.

    Args:
        params: of the attack.
        free: of the network that is attacked; with frozen perturbations, what is differentiated.
        angles: phi. Shape (n, s), s = `passes(problem).size`.
        smoothing: mu >= 0.

    Returns:
        the margins, and v and w of each switch. Shapes: (n,) or (n, k - 1), (n, s).
    """
    x, y = jnp.asarray(problem.dataset.x), jnp.asarray(problem.dataset.y)
    starts = None if problem.starts is None else jnp.asarray(problem.starts)

    def one(x: Array, y: Array, start: Array | None, angles: Array) -> tuple[Array, Decided]:
        return _one(problem, params, free, (x, y, start), angles, smoothing)

    return jax.vmap(one, (0, 0, None if starts is None else 0, 0))(x, y, starts, angles)


def _one(
    problem: Problem, params: Params, free: Params, example: Any, angles: Array, smoothing: Any
) -> tuple[Array, Decided]:
    """`switched_margins` of one example."""
    x, y, _ = example
    found = passes(problem)
    under, steps, choice, after = jnp.split(angles, np.cumsum(found.parts[:-1]))
    under = under.reshape(*found.gradients, found.num_followed + found.num_rivals)
    steps = steps.reshape(*found.gradients, found.num_steps)
    attack = _Attack(problem, params, example, smoothing)
    delta, first, second = jax.vmap(attack)(jnp.eye(found.num_attacks), under, steps)

    def at_input(delta: Array, angles: Array) -> tuple[Array, Decided]:
        output, decided = problem.network.switched(free, x + delta, angles, smoothing)
        return problem.margin_of(output, y), decided

    table, last = jax.vmap(at_input)(delta, after.reshape(found.num_attacks, found.num_network))
    margins, third = _margins_of(problem, table, choice, smoothing)
    decided = [first, second, third, last]
    joined = [jnp.concatenate([jnp.ravel(p) for p in side]) for side in zip(*decided, strict=True)]
    return margins, Decided(*joined)


class _Attack(NamedTuple):
    """The attack on one example with its switches held at their angles."""

    problem: Problem
    params: Params
    example: Any
    smoothing: Any

    def __call__(
        self, rival: Array, angles: Float[Array, "g s"], steps: Float[Array, "g e"]
    ) -> tuple[Array, Decided, Decided]:
        """The perturbation, and what decides the switches of the margins and of the steps.

        Args:
            rival: that it is made against, where each has its own attack: 1 for it, 0 for others.
        """
        problem, (x, _, start) = self.problem, self.example

        def attacked(point: Array, angles: Array) -> tuple[Array, Decided]:
            return self.attacked(point, angles, rival)

        if not len(angles):
            nothing = Decided(angles, angles), Decided(steps, steps)
            return jnp.zeros_like(x), *nothing
        delta, decided, turned = problem.perturbation.switched(
            attacked, x, start, angles, steps, self.smoothing
        )
        return delta, decided, Decided(*turned)

    def attacked(self, point: Array, angles: Array, rival: Array) -> tuple[Array, Decided]:
        """The margin that is attacked, and what decides its switches."""
        problem, (_, y, _) = self.problem, self.example
        followed = problem.followed
        own, choice = jnp.split(angles, [followed.num_switches])
        output, decided = followed.switched(self.params, point, own, self.smoothing)
        margin = problem.margin_of(output, y)
        if problem.separate:
            return rival @ margin, decided
        if not choice.size:
            return problem.attacked(margin), decided
        found = select_smallest(margin, self.smoothing, choice)
        pairs = zip(decided, (found.values, found.scales), strict=True)
        return found.largest, Decided(*(jnp.concatenate(pair) for pair in pairs))


def _margins_of(
    problem: Problem, table: Array, choice: Array, smoothing: Any
) -> tuple[Array, Decided]:
    """The margins of an example, and what decides the choice of the worst rival.

    Args:
        table: the margins at each of its perturbed inputs, one row for each.
    """
    if problem.rivals == "worst":
        # A choice that is rounded has no switches, and settles here.
        settles = problem.rival_smoothing is not None
        width = problem.rival_smoothing if settles else smoothing
        margins, found = margins_of_worst(table, width, None if settles else choice)
        return margins, Decided(choice, choice) if settles else Decided(found.values, found.scales)
    margins = own_margins(table) if problem.rivals == "each" else table[0]
    return margins, Decided(choice, choice)


def alive(problem: Problem, scales: np.ndarray, dead: float = DEAD_SCALE) -> np.ndarray:
    """Switches whose scale w is not close to 0, as that of a dead neuron is. Shapes (n, s).

    Args:
        dead: a scale below this part of `largest_of_kind` is close to 0.
    """
    return scales > dead * largest_of_kind(problem, scales)


def largest_of_kind(problem: Problem, scales: np.ndarray) -> np.ndarray:
    """The largest scale w among the switches of the same kind. Shapes: (n, s) -> (s,).

    Each kind has units of its own: a neuron those of its input, a choice of a rival those of a
    margin, a step those of a margin over those of the data.
    """
    found = passes(problem)
    neurons, rivals, steps = 0, 1, 2
    each = [neurons] * found.num_followed + [rivals] * found.num_rivals
    gradients, (_, num_steps, num_choices, num_after) = math.prod(found.gradients), found.parts
    kinds = np.array(
        each * gradients + [steps] * num_steps + [rivals] * num_choices + [neurons] * num_after
    )
    largest = np.zeros(kinds.size)
    for kind in set(kinds.tolist()):
        largest[kinds == kind] = scales[:, kinds == kind].max(initial=0.0)
    return largest


def alone_with(problem: Problem, index: Any) -> Problem:
    """The problem of one example alone, whose index may be traced."""
    own = [jnp.asarray(field)[index][None] for field in by_example(problem)]
    return eqx.tree_at(by_example, problem, own)
