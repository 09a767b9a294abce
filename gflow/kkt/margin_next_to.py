"""The margin that an attack leaves at a direction on kinks, or next to it.

Where a sign that the attack follows, or a ReLU on whose slope its gradient depends, stands on its
kink, the perturbation jumps, and with it the margin. It then has no value at the direction u but
one on each side of the kinks, s in {-1, 1} for each switch, `min_i q_i(u, s)`. The margin meant is
the largest that can be approached,

    limsup_{u' -> u} min_i q_i(u') = max over sides s next to u of min_i q_i(u, s).

A side is next to u if some direction h leads from u into it, `s_k (dv_k/dtheta . h) > 0` for all
its switches, where s_k is the sign of v_k. The margin of a KKT point at kinks, with coefficients
between -1 and 1, is in general the margin on none of the sides: its perturbations are combinations
of those on several sides, which partly cancel, so that the attack is weaker.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy.optimize import linprog

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls
from gflow._typing import Params
from gflow.kkt.batches import padded_chunks
from gflow.kkt.subgradients import Pattern, pattern_at
from gflow.kkt.switches import alone_with, passes, switched_margins
from gflow.kkt.variables import margins_at
from gflow.problem import Problem

# All sides of an example's kinks are tried if it has up to so many switches there. Of more switches
# as many random sides are.
_MOST_SWITCHES = 10
# A switch whose gradient is below this part of the largest one changes to second order only, so
# that the side to which an h leads is not decided by its gradient.
_FLAT = 1e-9
# Gradients that are computed by one program.
_CHUNK = 64
# The most combinations of sides that are tried for one value of the margin.
_MOST_NODES = 300

Side = tuple[np.ndarray, float]
"""The signs of an example's switches at kinks, and its margin there."""

Options = dict[int, list[Side]]


class NextTo(NamedTuple):
    """The margin that the attack leaves at a direction or next to it.

    Attributes:
        margin: see above.
        sampled: whether an example has more than 10 switches under attack on their kinks, so that
            only some of its sides were tried.
    """

    margin: float
    sampled: bool


def margin_next_to(problem: Problem, direction: Params, coefficients: np.ndarray) -> NextTo:
    """`limsup min_i q_i(u')` for u' -> u; see above. `min_i q_i(u)` where the attack does not jump.

    All sides of an example are tried if it has up to 10 switches under attack on their kinks, and
    1024 of its sides if it has more. Each example is put on its best side; if no h leads to all of
    these sides at once, combinations of others are searched, at most 300 for each value that is
    tried. The value returned can always be approached; if the search is cut short, it need not be
    the largest such value.

    Args:
        direction: u, a pytree of norm 1.
        coefficients: `sin phi` of the switches, which tell the side of those that stand on no kink
            of the attack but may turn with it. Shape (n, s).
    """
    layout = Layout.of(direction)
    at = float(np.min(margins_at(problem, layout, layout.flatten_on_host(direction))))
    if not passes(problem).jumps:
        return NextTo(at, False)
    sides = _Sides(problem, direction, coefficients)
    if not sides.places:
        return NextTo(at, False)
    most = max(map(len, sides.places.values()))
    return NextTo(max(at, sides.largest()), most > _MOST_SWITCHES)


class _Sides:
    """The sides of the kinks of the attack at a direction."""

    def __init__(self, problem: Problem, direction: Params, coefficients: np.ndarray):
        self.problem, self.layout = problem, Layout.of(direction)
        self.direction = self.layout.flatten_on_host(direction)
        self.held = np.clip(coefficients, -1.0, 1.0)
        self.num_under = passes(problem).num_under
        pattern = pattern_at(problem, self.layout, self.direction, self.held)
        jumps = (pattern.free & pattern.alive)[:, : self.num_under]
        self.places = {
            int(example): np.flatnonzero(jumps[example])
            for example in np.flatnonzero(jumps.any(axis=1))
        }

    def largest(self) -> float:
        """The largest `min_i q_i` on a side that is next to the direction."""
        options = self.options()
        first = {example: ranked[0] for example, ranked in options.items()}
        pattern = self.pattern(first)
        smallest = float(pattern.margins.min())
        # An example whose margin is larger even on its worst side may stand on any.
        matters = {e: ranked for e, ranked in options.items() if ranked[-1][1] < smallest}
        if self.reachable(pattern, list(matters)):
            return smallest
        return self.largest_together(options, smallest)

    def options(self) -> Options:
        """Each example's sides and its margins there, largest first."""
        options: Options = {example: [] for example in self.places}
        tried = {example: _signs(len(places)) for example, places in self.places.items()}
        for number in range(max(map(len, tried.values()))):
            chosen = {e: (signs[number % len(signs)], 0.0) for e, signs in tried.items()}
            margins = self.pattern(chosen).margins.reshape(len(self.held), -1).min(axis=1)
            for example, signs in tried.items():
                if number < len(signs):
                    options[example].append((signs[number], float(margins[example])))
        return {
            example: sorted(ranked, key=lambda side: -side[1])
            for example, ranked in options.items()
        }

    def pattern(self, chosen: dict[int, Side]) -> Pattern:
        """How the switches stand on the chosen sides. Where the gradient that an attack follows is
        0 there is no perturbation: its switches, which then have no sign, are put at 0.
        """
        given = np.where(self.held < 0, -1.0, 1.0)
        given[:, self.num_under :] = self.held[:, self.num_under :]
        for example, (signs, _) in chosen.items():
            given[example, self.places[example]] = signs
        pattern = pattern_at(self.problem, self.layout, self.direction, given)
        nothing = pattern.free & ~pattern.alive
        nothing[:, self.num_under :] = False
        if not nothing.any():
            return pattern
        return pattern_at(self.problem, self.layout, self.direction, np.where(nothing, 0.0, given))

    def reachable(self, pattern: Pattern, examples: list[int]) -> bool:
        """Whether some h leads into this side for all these examples."""
        places = np.array([(e, switch) for e in examples for switch in self.places[e]], int)
        if not len(places):
            return True
        rows = self.rows(pattern, places)
        lengths = np.linalg.norm(rows, axis=1)
        # A switch may have left its kink because others turned: then its own value decides its
        # sign, whatever h.
        turns = (lengths > _FLAT * lengths.max()) & pattern.free[tuple(places.T)]
        signs = pattern.coefficients[tuple(places.T)][turns]
        return _has_interior(signs[:, None] * rows[turns] / lengths[turns, None])

    def largest_together(self, options: Options, smallest: float) -> float:
        """The largest value of the smallest margin on sides to which one h leads, by bisection
        among the margins that single examples have on their sides.
        """
        levels = np.unique([side[1] for ranked in options.values() for side in ranked])
        levels, best = levels[levels < smallest], -np.inf
        low, high = 0, len(levels) - 1
        while low <= high:
            middle = (low + high) // 2
            found = self.at_least(options, levels[middle])
            if found is None:
                high = middle - 1
            else:
                best, low = max(best, float(self.pattern(found).margins.min())), middle + 1
        return best

    def at_least(self, options: Options, level: float) -> dict[int, Side] | None:
        """Sides of all examples to which one h leads and on which all margins are at least `level`;
        None where none are found.
        """
        matters = {e: ranked for e, ranked in options.items() if ranked[-1][1] < level}
        admitted = [(e, [side for side in matters[e] if side[1] >= level]) for e in matters]
        # Depth-first search; examples with few sides come first, which cuts off most combinations.
        admitted.sort(key=lambda each: len(each[1]))
        nodes = itertools.count()

        def search(chosen: dict[int, Side]) -> dict[int, Side] | None:
            if len(chosen) == len(admitted):
                return chosen
            example, sides = admitted[len(chosen)]
            for side in sides:
                there = {**chosen, example: side}
                if next(nodes) >= _MOST_NODES:
                    return None
                if self.reachable(self.pattern(there), list(there)):
                    found = search(there)
                    if found is not None:
                        return found
            return None

        return search({})

    def rows(self, pattern: Pattern, places: np.ndarray) -> np.ndarray:
        """`dv_k/dtheta` of these switches. Shapes: places (k, 2) -> (k, P)."""
        given = self.problem, self.layout, self.direction, pattern.coefficients
        found = np.empty((len(places), self.layout.size))
        for chunk, padded in padded_chunks(places, _CHUNK, 0):
            found[chunk] = np.asarray(_rows(*given, padded))[: chunk.stop - chunk.start]
        return found


def _signs(count: int) -> list[np.ndarray]:
    """All sides of so many switches; if these are too many, random ones."""
    if count <= _MOST_SWITCHES:
        return [np.array(signs) for signs in itertools.product((-1.0, 1.0), repeat=count)]
    random = np.random.default_rng(0).choice([-1.0, 1.0], size=(2**_MOST_SWITCHES, count))
    return list(random)


def _has_interior(rows: np.ndarray) -> bool:
    """Whether `rows h >= 1` has a solution. Shape (k, P), rows of norm 1."""
    # A linear program decides; the solution of least squares often satisfies it already.
    ones = np.ones(len(rows))
    solution = np.linalg.lstsq(rows, ones, rcond=None)[0]
    if np.min(rows @ solution, initial=np.inf) > 0:
        return True
    found: Any = linprog(np.zeros(rows.shape[1]), A_ub=-rows, b_ub=-ones, bounds=(None, None))
    return found.status == 0


@compiled_for_few_calls
def _rows(
    problem: Problem, layout: Layout, theta: Any, coefficients: Any, places: Any
) -> Float[Array, "k P"]:
    theta, angles = jnp.asarray(theta), jnp.arcsin(jnp.asarray(coefficients))

    def one(place: Array) -> Array:
        index, switch = place
        alone = alone_with(problem, index)

        def value(theta: Array) -> Array:
            params = layout.unflatten(theta)
            return switched_margins(alone, params, params, angles[index][None], 0.0)[1].values[
                0, switch
            ]

        return jax.grad(value)(theta)

    return lax.map(one, jnp.asarray(places), batch_size=_CHUNK)
