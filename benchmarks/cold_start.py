"""From a fresh interpreter to the first result.

Each run is a new process without any compilation cache: `import gflow`, the first trajectory of a
small problem with all compilation, and the first line of `gflow run`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from _common import run_benchmark

FIRST_TRAJECTORY = """
import jax
jax.config.update("jax_enable_x64", True)
import gflow
data = gflow.datasets.gaussian(40, 5)
network = gflow.networks.mlp((5, 8, 1), power=2)
problem = gflow.Problem(
    network, data, loss=gflow.losses.logistic(), perturbation=gflow.perturbations.fgm(0.1)
)
flow = gflow.integrate(problem, network.init(0), until=gflow.Until(log_loss=0.0))
assert flow.successful
"""


def seconds_of(code: str) -> float:
    """Wall time of a fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    return time.perf_counter() - start


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}


def first_line_seconds() -> float:
    """Wall time until `gflow run` prints its first line; the run is then ended."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "gflow", "run", "--quick", "--output", folder]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()
        ) as run:
            assert run.stdout is not None
            line = run.stdout.readline()
            seconds = time.perf_counter() - start
            run.kill()
        if not line.strip():
            raise RuntimeError("`gflow run` printed nothing")
        return seconds


def measure(smoke: bool) -> dict[str, Any]:
    """Medians over fresh processes."""
    repeats = 1 if smoke else 5
    cases = {
        "import_jax": lambda: seconds_of("import jax"),
        "import_gflow": lambda: seconds_of("import gflow"),
        "first_trajectory": lambda: seconds_of(FIRST_TRAJECTORY),
        "first_line_of_run": first_line_seconds,
    }
    results = {}
    for name, case in cases.items():
        seconds = [case() for _ in range(repeats)]
        results[name] = {"median_seconds": statistics.median(seconds), "runs": seconds}
        print(f"{name:>18}  {statistics.median(seconds):.2f} s", flush=True)
    return results


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
