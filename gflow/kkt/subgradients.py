"""The gradients of the margins at a direction; at kinks, all that are possible there.

A kink has a name if a switch stands for it (`gflow.kkt.switches`). There the gradient depends on a
coefficient `sin phi` in [-1, 1] of each switch on its kink; a switch off its kink has a sign, that
of its value v. Every such pattern of coefficients gives an admissible gradient. For independent
kinks these are the members of Clarke's subdifferential; with frozen perturbations they are the
fields whose combinations a sliding flow follows. Kinks without a name are looked for along random
lines, and the gradients on both sides are taken.

Source: Clarke 1983.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls
from gflow._typing import Params
from gflow.kkt.kinked_system import kinked_residuals
from gflow.kkt.switches import (
    alive,
    alone_with,
    has_kinks,
    largest_of_kind,
    passes,
    switched_margins,
)
from gflow.kkt.system import margins_and_rows
from gflow.kkt.variables import Variables
from gflow.problem import Problem

# Bytes that the gradients of single margins may take, and those by coefficients of switches; and
# the most margins (the smallest ones) and the most switches for which they are computed.
_GRADIENT_BYTES = 2**28
MOST_MARGINS = 512
_MOST_KINKS = 4096
# How far to either side kinks without a name are looked for, along how many lines, and the relative
# change of a gradient that shows one.
_PROBE = 1e-7
_NUM_PROBES = 2
_JUMP = 1e-3
# A switch stands on its kink where |v| is below this part of w.
_AT_KINK = 1e-9
# A scale w below this part of the largest counts as this part of it: there it is rounding, as where
# all pixels of a window are 0.
_NOTHING = 1e-6
# Derivatives by sin phi are taken at least this far from the ends of its range, where the
# derivative of phi by sin phi is infinite.
_INSIDE = 1e-6
# Switches that are differentiated by side by side.
_BATCH = 256


Rows = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""`direction -> (slopes, gradients)` of all margins, as of `gflow.kkt.system.margins_and_rows`."""


class Pattern(NamedTuple):
    """How the switches stand at the direction.

    Attributes:
        coefficients: `sin phi`. Shape (n, s).
        free: where it may be any number in [-1, 1]. Shape (n, s).
        alive: switches whose scale is not next to nothing. Shape (n, s).
        margins: q. Shape (n,) or (n, k - 1).
    """

    coefficients: np.ndarray
    free: np.ndarray
    alive: np.ndarray
    margins: np.ndarray


class Subgradients:
    """The possible gradients of the smallest margins at a direction u.

    Each margin has one column, its gradient; one with a kink that has no name has several.

    Args:
        rows: the gradients of all margins at the direction and at `probes_about` it, where they are
            known already and no kink has a name; by default a program computes them.

    Attributes:
        owner: (columns,) the flat index of the margin that each column belongs to.
        examples: the examples examined.
        at_unnamed: those of them at a kink that has no name.
        examined: number of margins.
        named: whether the problem has kinks that have names.
        per_example: margins of each example; num_margins: of all.
    """

    def __init__(
        self,
        problem: Problem,
        direction: Params,
        margins: np.ndarray,
        rows: Rows | None = None,
    ):
        self._rows = self._computed if rows is None else rows
        self.problem, self.layout = problem, Layout.of(direction)
        self.direction = self.layout.flatten_on_host(direction)
        self.named = has_kinks(problem)
        self.per_example = margins.size // len(margins)
        self.num_margins, self._margins = margins.size, margins
        most = min(MOST_MARGINS, _GRADIENT_BYTES // (8 * self.layout.size)) // self.per_example
        smallest = margins.reshape(len(margins), -1).min(axis=1)
        self.examples = np.sort(np.argsort(smallest, kind="stable")[: max(most, 1)])
        owners = self.examples[:, None] * self.per_example + np.arange(self.per_example)
        self._all_owners = owners.ravel()
        self.examined = owners.size
        self._look_for_unnamed()

    def pattern(self, coefficients: np.ndarray | None = None) -> Pattern:
        """The pattern with these coefficients at the kinks (0 if None), all else decided.

        The switches of an attack decide at which point the next ones are evaluated. So the signs
        are found in passes, from the first switches to the last.
        """
        shape = len(self._margins), passes(self.problem).size if self.named else 0
        given = np.zeros(shape) if coefficients is None else np.clip(coefficients, -1.0, 1.0)
        return self._pattern_at(self.direction, given)

    def at(self, pattern: Pattern) -> np.ndarray:
        """The columns under a pattern. Shape (columns, P)."""
        if not self._sided.any():
            return self._gradients(self.direction, pattern)
        centre = self._gradients(self.direction, pattern)
        return np.concatenate([centre[~self._sided], *self._sides])

    def total_pull(self, pattern: Pattern, multipliers: np.ndarray) -> np.ndarray:
        """`sum_i lambda_i dq_i/dtheta` through the perturbations, whatever the gradient mode, with
        the switches held under a pattern. Shapes: multipliers (m,), result (P,).
        """
        given = self.problem, self.layout, self.direction
        if self._from_system:
            return multipliers @ self._rows(self.direction)[0]
        return np.asarray(_total_pull(*given, pattern.coefficients, multipliers))

    @property
    def _from_system(self) -> bool:
        """Whether all gradients can be taken from the program of the KKT system, which a search has
        compiled already.
        """
        return not self.named and self.examined == self.num_margins

    def turns(self, pattern: Pattern, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of an example's gradient by its coefficients, at the free switches.

        Args:
            shares: of each margin in its example's multipliers, adding up to 1. Shape (m,).

        Returns:
            `sum_j p_ij d(grad q_ij)/d(sin phi_ik)`, without those that vanish, and (i, k). Those of
            the smallest margins where there are too many. Shapes: (t, P), (t, 2).
        """
        size = self.layout.size
        smallest = pattern.margins.reshape(len(pattern.margins), -1).min(axis=1)
        examples = self.examples[np.argsort(smallest[self.examples], kind="stable")]
        row, switch = np.nonzero(pattern.free[examples])
        places = np.stack([examples[row], switch], axis=1)
        places = places[: min(_MOST_KINKS, max(_GRADIENT_BYTES // (8 * size), 1))]
        if not len(places):
            return np.zeros((0, size)), places
        padded = np.zeros((max(32, 1 << (len(places) - 1).bit_length()), 2), int)
        padded[: len(places)] = places
        found = _switched_turns(
            self.problem,
            self.layout,
            self.direction,
            pattern.coefficients,
            shares.reshape(len(smallest), -1),
            padded,
        )
        columns = np.asarray(found)[: len(places)]
        lengths = np.linalg.norm(columns, axis=1)
        counts = lengths > 1e-14 * lengths.max(initial=0.0)
        return columns[counts], places[counts]

    def examples_at_kink(self, pattern: Pattern) -> np.ndarray:
        """Examples, of those examined, at a kink, with a name or without."""
        named = self.examples[(pattern.free & pattern.alive)[self.examples].any(axis=1)]
        return np.union1d(named, self.at_unnamed)

    def _pattern_at(self, vector: np.ndarray, given: np.ndarray) -> Pattern:
        if not self.named:
            nothing = np.zeros(given.shape, bool)
            return Pattern(given, nothing, nothing, self._margins)
        return pattern_at(self.problem, self.layout, vector, given)

    def _gradients(self, vector: np.ndarray, pattern: Pattern) -> np.ndarray:
        """Shapes: (margins, P)."""
        if self.named:
            found = _switched_gradients(
                self.problem, self.layout, vector, pattern.coefficients, self.examples
            )
            return np.asarray(found)
        if self._from_system:
            return self._rows(vector)[1]
        params = self.layout.unflatten(jnp.asarray(vector))
        gradients = self.problem.margin_gradients(params, jnp.asarray(self.examples))
        leaves = [
            np.asarray(leaf).reshape(self.examined, -1) for leaf in jax.tree.leaves(gradients)
        ]
        return np.concatenate(leaves, axis=1)

    def _computed(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, slopes, gradients = margins_and_rows(self.problem, self.layout, vector)
        return np.asarray(slopes), np.asarray(gradients)

    def _look_for_unnamed(self) -> None:
        """Finds the margins with a kink that has no name: their gradients on the two sides differ
        by far more than those of a smooth margin would, and no switch stands on its kink.
        """
        centre = self.pattern()
        gradients = self._gradients(self.direction, centre)
        size = np.linalg.norm(gradients, axis=1) + 1e-300
        named = centre.free.any(axis=1)
        sides, jumps = [], np.zeros(self.examined, bool)
        for probe in probes_about(self.direction):
            there = self._pattern_at(probe, centre.coefficients)
            side = self._gradients(probe, there)
            named = named | np.any(there.coefficients != centre.coefficients, axis=1)
            jumps |= np.linalg.norm(side - gradients, axis=1) > _JUMP * size
            sides.append(side)
        self._sided = jumps & ~np.asarray(named)[self._all_owners // self.per_example]
        self._sides = [side[self._sided] for side in sides]
        self.at_unnamed = np.unique(self._all_owners[self._sided] // self.per_example)
        owners = self._all_owners
        repeated = [owners[self._sided] for _ in sides]
        self.owner = np.concatenate([owners[~self._sided], *repeated])


def pattern_at(problem: Problem, layout: Layout, vector: np.ndarray, given: np.ndarray) -> Pattern:
    """The pattern at a direction with given coefficients at the kinks, all else decided.

    Shapes: vector (P,), given (n, s).
    """
    coefficients = given
    rivals = max(problem.dataset.num_outputs - 1, 1)
    nothing = np.zeros(len(given) * rivals)
    while True:  # at most once for each layer of switches, since none decides an earlier one
        variables = Variables(vector, nothing, np.arcsin(coefficients))
        # By the program of Newton's method, which a search has compiled.
        _, margins, values, scales = kinked_residuals(problem, layout, variables, 0.0)
        least = _NOTHING * largest_of_kind(problem, scales)
        free = np.abs(values) <= _AT_KINK * np.maximum(scales, least)
        turned = np.where(free, given, np.sign(values))
        if np.array_equal(turned, coefficients):
            break
        coefficients = turned
    shape = given.shape[:1] if problem.dataset.binary else (len(given), rivals)
    return Pattern(coefficients, free, alive(problem, scales), margins.reshape(shape))


def probes_about(direction: np.ndarray) -> list[np.ndarray]:
    """Points a little to either side of the direction, along fixed random lines."""
    generator = np.random.default_rng(0)
    offsets = [generator.normal(size=direction.size) for _ in range(_NUM_PROBES)]
    steps = [_PROBE * offset / np.linalg.norm(offset) for offset in offsets]
    return [direction + sign * step for step in steps for sign in (1, -1)]


@compiled_for_few_calls
def _switched_gradients(
    problem: Problem, layout: Layout, theta: Any, coefficients: Any, examples: Any
) -> Float[Array, "m P"]:
    """The gradients of all margins of these examples, in the gradient mode, under a pattern."""
    theta, angles = jnp.asarray(theta), jnp.arcsin(jnp.asarray(coefficients))

    def one(index: Array) -> Array:
        margins = _margins_of(problem, layout, theta, index)
        return jax.jacrev(margins)(theta, angles[index])

    return jax.vmap(one)(jnp.asarray(examples)).reshape(-1, theta.size)


@compiled_for_few_calls
def _total_pull(
    problem: Problem, layout: Layout, theta: Any, coefficients: Any, multipliers: Any
) -> Float[Array, " P"]:
    def margins(free: Array) -> Array:
        moved = layout.unflatten(free)
        if not has_kinks(problem):
            return problem.margins(moved).ravel()
        angles = jnp.arcsin(jnp.asarray(coefficients))
        return switched_margins(problem, moved, moved, angles, 0.0)[0].ravel()

    return jax.vjp(margins, jnp.asarray(theta))[1](jnp.asarray(multipliers))[0]


@compiled_for_few_calls
def _switched_turns(
    problem: Problem, layout: Layout, theta: Any, coefficients: Any, shares: Any, places: Any
) -> Float[Array, "t P"]:
    """The derivatives of `Subgradients.turns` by the coefficients at `places`."""
    theta, coefficients, shares = map(jnp.asarray, (theta, coefficients, shares))

    def one(place: Array) -> Array:
        index, switch = place
        margins = _margins_of(problem, layout, theta, index)
        inside = jnp.clip(coefficients[index, switch], _INSIDE - 1, 1 - _INSIDE)
        angles = jnp.arcsin(coefficients[index]).at[switch].set(jnp.arcsin(inside))
        along = jnp.zeros_like(angles).at[switch].set(1 / jnp.sqrt(1 - inside**2))

        def pull(angles: Array) -> Array:
            return jax.grad(lambda free: shares[index] @ margins(free, angles))(theta)

        return jax.jvp(pull, (angles,), (along,))[1]

    return lax.map(one, jnp.asarray(places), batch_size=min(_BATCH, len(places)))


def _margins_of(problem: Problem, layout: Layout, theta: Array, index: Array) -> Any:
    """The margins of one example, against every rival, as a function of (theta, its angles)."""
    alone = alone_with(problem, index)

    def margins(free: Array, angles: Array) -> Array:
        moved = layout.unflatten(free)
        attacker = layout.unflatten(theta) if problem.gradient_mode == "frozen" else moved
        return switched_margins(alone, attacker, moved, angles[None], 0.0)[0].reshape(-1)

    return margins
