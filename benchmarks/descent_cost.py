"""What a step of `gflow.descend` costs beside the same steps of optax in a plain `lax.scan`.

There are two peers, each one scan without any record but the last parameters: over the gradient of
the same `Problem`, and over a loss written by hand, with the perturbation under `stop_gradient`.
All run in the same process, in turn, and end at the same parameters. Seconds are those of the
process's CPU, for a whole call once it is compiled: the least of all repetitions. gflow's are told
with its record of 512 points, each of which is measured, and with 2 of them.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import run_benchmark, show
from jax import lax

import gflow
from gflow import losses, networks, perturbations

COLUMNS = (
    "problem",
    "num_steps",
    "us_a_step",
    "us_of_2_points",
    "us_of_problem",
    "us_by_hand",
    "difference",
)
RADIUS, STEP_SIZE = 0.1, 1e-4
# (examples, inputs, hidden neurons, attacked)
SIZES = {
    "linear": (40, 5, 0, False),
    "40-5-10": (40, 5, 10, True),
    "200-20-32": (200, 20, 32, True),
}


def measure(smoke: bool) -> dict[str, Any]:
    """For every problem: microseconds a step of both, the median over repetitions in turn."""
    num_steps, repeats = (200, 1) if smoke else (20_000, 7)
    show({}, COLUMNS, header=True)
    rows = []
    for name, (n, d, hidden, attacked) in SIZES.items():
        steps = num_steps if n < 100 else num_steps // 10
        rows.append({"problem": name, **compared(n, d, hidden, attacked, steps, repeats)})
        show(rows[-1], COLUMNS)
    return {"step_size": STEP_SIZE, "radius": RADIUS, "rows": rows}


def compared(n, d, hidden, attacked, num_steps, repeats) -> dict[str, Any]:
    data = gflow.datasets.gaussian(n, d, gap=0.5, seed=0)
    network = networks.mlp((d, hidden, 1), power=2) if hidden else networks.linear(d)
    attack = perturbations.fgm(RADIUS, order=2) if attacked else None
    problem = gflow.Problem(network, data, loss=losses.logistic(), perturbation=attack)
    start, optimizer = network.init(0), optax.sgd(STEP_SIZE)
    by_hand = by_scan(data, attacked, optimizer, num_steps)
    by_problem = scanned(problem.gradient, optimizer, num_steps)
    calls = {
        "gflow": lambda: gflow.descend(problem, start, optimizer, num_steps=num_steps).params,
        "few": lambda: gflow.descend(problem, start, optimizer, num_steps=num_steps, save=2).params,
        "problem": lambda: by_problem(start),
        "hand": lambda: by_hand(start),
    }
    least, ends = dict.fromkeys(calls, np.inf), {}
    for repeat in range(repeats + 1):  # the first compiles
        for name, call in calls.items():
            begin = time.process_time()
            ends[name] = jax.block_until_ready(call())
            if repeat:
                least[name] = min(least[name], time.process_time() - begin)
    micro = {name: 1e6 * seconds / num_steps for name, seconds in least.items()}
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in ends[name]]) for name in ("gflow", "hand")
    )
    return {
        "num_steps": num_steps,
        "us_a_step": micro["gflow"],
        "us_of_2_points": micro["few"],
        "us_of_problem": micro["problem"],
        "us_by_hand": micro["hand"],
        "difference": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
    }


def scanned(gradient_of, optimizer, num_steps: int):
    """`num_steps` steps along a gradient from given parameters, as one compiled scan."""

    def step(carry, _):
        params, state = carry
        update, state = optimizer.update(gradient_of(params), state, params)
        return (optax.apply_updates(params, update), state), None

    @jax.jit
    def run(start):
        return lax.scan(step, (start, optimizer.init(start)), None, length=num_steps)[0][0]

    return run


def by_scan(data, attacked: bool, optimizer, num_steps: int):
    """`num_steps` steps from given parameters, as one compiled scan."""
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)

    def output(params, inputs):
        if len(params) == 1:
            return (params[0] @ inputs)[0]
        return jnp.dot(params[1][0], jax.nn.relu(params[0] @ inputs) ** 2)

    def perturbed(params, inputs, label):
        gradient = label * jax.grad(output, argnums=1)(params, inputs)
        length = jnp.linalg.norm(gradient)
        return inputs - RADIUS * gradient / jnp.where(length > 0, length, 1.0)

    def loss(params):
        inputs = x
        if attacked:
            inputs = lax.stop_gradient(jax.vmap(perturbed, (None, 0, 0))(params, x, y))
        return jnp.sum(jax.nn.softplus(-y * jax.vmap(output, (None, 0))(params, inputs)))

    return scanned(jax.grad(loss), optimizer, num_steps)


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
