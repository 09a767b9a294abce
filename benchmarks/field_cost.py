"""Cost of one evaluation of the flow's field, against a gradient of the same loss written by hand.

The hand-written program is what a researcher would write: a batch of examples as matrix products,
the perturbation outside the derivative, `jax.grad` of the sum of `exp(-q)`. It knows neither
logarithms of losses nor the sphere. Both are compiled, and called in alternation, so that whatever
else the machine does falls on both; the ratio is the median over pairs of calls.

The error compares the directions of the two results: the hand-written gradient projected onto the
sphere, over the largest entry of the field.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _common import run_benchmark, show

import gflow
from gflow import networks, perturbations
from gflow._layout import Layout
from gflow.flow.field import Field, vector_field
from gflow.flow.starting import initial_state

COLUMNS = ("network", "perturbation", "error", "field_ms", "hand_ms", "ratio")
RADII = {"clean": 0.0, "fgm": 0.3, "fgsm": 0.05, "pgd": 0.05}
SMOOTHING = 0.1
PGD_STEPS = 10


def hand_network(kind: str) -> Callable[[Any, Any], Any]:
    """The outputs of a batch, (n, d) -> (n,), as one would write them."""

    def linear(weights, x):
        for weight in weights:
            x = x @ weight.T
        return x[:, 0]

    def squared(weights, x):
        for weight in weights[:-1]:
            x = jax.nn.relu(x @ weight.T) ** 2
        return (x @ weights[-1].T)[:, 0]

    def smoothed(weights, x):
        for weight in weights[:-1]:
            value = x @ weight.T
            norms = jnp.linalg.norm(x, axis=1)[:, None] * jnp.linalg.norm(weight, axis=1)
            x = 0.5 * (value + jnp.sqrt(value**2 + (SMOOTHING * norms) ** 2))
        return (x @ weights[-1].T)[:, 0]

    return {"deep linear": linear, "ReLU^2": squared, "smoothed ReLU": smoothed}[kind]


def hand_attack(kind: str, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """The perturbations of a batch."""
    radius = RADII[kind]

    def slope(weights, x, y):
        return jax.grad(lambda inputs: jnp.sum(y * apply(weights, inputs)))(x)

    def clean(weights, x, y):
        return jnp.zeros_like(x)

    def fgm(weights, x, y):
        g = slope(weights, x, y)
        return -radius * g / jnp.linalg.norm(g, axis=1, keepdims=True)

    def fgsm(weights, x, y):
        return -radius * jnp.sign(slope(weights, x, y))

    def pgd(weights, x, y):
        step = 2.5 * radius / PGD_STEPS

        def body(_, delta):
            delta = delta - step * jnp.sign(slope(weights, x + delta, y))
            return jnp.clip(delta, -radius, radius)

        return jax.lax.fori_loop(0, PGD_STEPS, body, jnp.zeros_like(x))

    return {"clean": clean, "fgm": fgm, "fgsm": fgsm, "pgd": pgd}[kind]


def hand_gradient(network: str, perturbation: str) -> Callable[..., Any]:
    apply = hand_network(network)
    attack = hand_attack(perturbation, apply)

    @jax.jit
    def gradient(weights, x, y):
        delta = jax.lax.stop_gradient(attack(weights, x, y))
        return jax.grad(lambda free: jnp.sum(jnp.exp(-y * apply(free, x + delta))))(weights)

    return gradient


def gflow_problem(network: str, perturbation: str, widths: tuple[int, ...], dataset: Any) -> Any:
    net = {
        "deep linear": lambda: networks.deep_linear(widths),
        "ReLU^2": lambda: networks.mlp(widths, power=2),
        "smoothed ReLU": lambda: networks.mlp(widths, smoothing=SMOOTHING),
    }[network]()
    radius = RADII[perturbation]
    attack = {
        "clean": perturbations.clean,
        "fgm": lambda: perturbations.fgm(radius),
        "fgsm": lambda: perturbations.fgsm(radius),
        "pgd": lambda: perturbations.pgd(radius, order=math.inf, num_steps=PGD_STEPS),
    }[perturbation]()
    return gflow.Problem(net, dataset, loss=gflow.losses.exponential(), perturbation=attack)


def compiled_field(field: Field) -> tuple[Callable[..., Any], Any]:
    """The field as a plain jitted function of arrays, called as cheaply as one by hand."""
    arrays, rest = eqx.partition(field, eqx.is_array_like)
    arrays = jax.tree.map(jnp.asarray, arrays)

    @jax.jit
    def evaluate(state, arrays):
        return vector_field(0.0, state, eqx.combine(arrays, rest))

    return evaluate, arrays


def alternated(
    first: Callable[[], Any], second: Callable[[], Any], pairs: int, calls: int
) -> tuple[float, float, float]:
    """Median seconds of each, and the median ratio of the first to the second, pair by pair."""

    def seconds(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(function())
        return (time.perf_counter() - start) / calls

    times = [(seconds(first), seconds(second)) for _ in range(pairs)]
    left, right = zip(*times, strict=True)
    ratios = [a / b for a, b in times]
    return statistics.median(left), statistics.median(right), statistics.median(ratios)


def relative_error(value: np.ndarray, direction: np.ndarray, gradient: np.ndarray) -> float:
    """Of the field's direction, against the projected gradient, each over its own length."""
    descent = -gradient + (gradient @ direction) * direction
    value, descent = value / np.linalg.norm(value), descent / np.linalg.norm(descent)
    return float(np.max(np.abs(value - descent)) / np.max(np.abs(descent)))


def measure_one(network: str, perturbation: str, dataset: Any, smoke: bool) -> dict[str, Any]:
    widths = (dataset.x.shape[1], 32, 1)
    problem = gflow_problem(network, perturbation, widths, dataset)
    start = problem.network.init(0)
    layout = Layout.of(start)
    evaluate, arrays = compiled_field(Field(problem, layout))
    state = jnp.asarray(initial_state(layout, start))
    gradient = hand_gradient(network, perturbation)
    x, y = jnp.asarray(dataset.x), jnp.asarray(dataset.y, float)
    field_value = np.asarray(evaluate(state, arrays))[:-2]
    hand_value = np.asarray(layout.flatten(gradient(start, x, y)))
    error = relative_error(field_value, np.asarray(state[:-2]), hand_value)
    row: dict[str, Any] = {"network": network, "perturbation": perturbation, "error": error}
    if error < 1e-9:
        pairs, calls = (3, 2) if smoke else (101, 10)
        field_seconds, hand_seconds, ratio = alternated(
            lambda: evaluate(state, arrays), lambda: gradient(start, x, y), pairs, calls
        )
        row |= {"field_ms": 1e3 * field_seconds, "hand_ms": 1e3 * hand_seconds, "ratio": ratio}
    show(row, COLUMNS)
    return row


def measure(smoke: bool) -> dict[str, Any]:
    names = ("ReLU^2",) if smoke else ("deep linear", "ReLU^2", "smoothed ReLU")
    kinds = ("clean", "fgm") if smoke else tuple(RADII)
    dataset = gflow.datasets.gaussian(20, 5) if smoke else gflow.datasets.digits()
    show({}, COLUMNS, header=True)
    rows = [measure_one(name, kind, dataset, smoke) for name in names for kind in kinds]
    n, d = dataset.x.shape
    return {"num_examples": n, "widths": [d, 32, 1], "rows": rows}


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
