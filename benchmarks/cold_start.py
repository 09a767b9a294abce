"""From a fresh interpreter to the first result: programs, instructions and CPU time.

Each run is a process of its own. Beside the yardstick, `import jax` and a trivial `jax.jit`, stand
one `integrate` and one `find_limit` of two-layer networks under FGM, at several sizes, smooth and
at kinks:

- cold: without any compilation cache;
- cached: with the cache that a process before has filled;
- further: the limit and ten further ones of the same shape, cold, and the median of these ten; of
  networks on 200 examples three.

Last, `gflow run --quick` as a whole, cold and cached.

CPU time is that of the process, all its threads, from the imports of gflow on; in the yardstick the
import of JAX counts. Instructions are those of the optimised programs (`--xla_dump_to`), counted in
a process whose time is not taken.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import printed_by, run_benchmark, show

YARDSTICK = """
import json, time
begin = time.process_time()
import jax
jax.config.update("jax_enable_x64", True)
jax.jit(lambda x: x + 1.0)(1.0).block_until_ready()
print(json.dumps({"cpu_seconds": time.process_time() - begin}))
"""

# Without a cache folder the caches of JAX stay off.
CASE = """
import json, statistics, time
import jax
import numpy as np
jax.config.update("jax_enable_x64", True)
import gflow
import gflow.flow, gflow.limit
SMOOTH, N, D, WIDTH, KIND, REPEATS, CACHE = {arguments}
programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: programs.append(seconds) if name.endswith("backend_compile_duration")
    else None
)
if CACHE:
    gflow.use_compilation_cache(CACHE)
network = gflow.networks.mlp((D, WIDTH, 1), smoothing=0.05 if SMOOTH else 0.0)

def once(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(N, D))
    data = gflow.Dataset(x, np.where(generator.random(N) < 0.5, -1, 1))
    if N > 50:  # random labels of so many points are not separable
        data = gflow.Dataset(x, np.where(x[:, 0] + x[:, 1] * x[:, 2] > 0, 1, -1))
    attack = gflow.perturbations.fgm(0.05)
    problem = gflow.Problem(
        network, data, loss=gflow.losses.exponential(), perturbation=attack
    )
    begin = time.process_time()
    start = network.init(seed)
    if KIND == "integrate":
        run = gflow.integrate(problem, start, until=gflow.Until(log_loss=-5.0), throw=False)
        steps, result, value = len(run) - 1, run.result_name, float(run.margin[-1])
    else:
        run = gflow.find_limit(problem, start, throw=False)
        steps, result, value = run.num_flow_steps, run.result_name, float(run.margin)
    return time.process_time() - begin, steps, result, value

runs = [once(seed) for seed in range(1 + REPEATS)]
seconds = [run[0] for run in runs]
print(json.dumps({{
    "cpu_seconds": seconds[0], "total_seconds": sum(seconds),
    "warm_seconds": statistics.median(seconds[1:]) if REPEATS else None,
    "programs": len(programs), "compile_wall_seconds": sum(programs),
    "steps": [run[1] for run in runs], "results": [run[2] for run in runs],
    "margins": [run[3] for run in runs],
}}))
"""

# Smooth or plain ReLU, examples, inputs, width; the first is the one of the bars.
SIZES = (
    (True, 30, 7, 8),
    (False, 30, 7, 8),
    (True, 60, 10, 16),
    (True, 200, 20, 16),
)
# Further runs, and fresh processes of which the median is told; of the large ones.
FURTHER, REPEATS = 10, 3
LARGE, FURTHER_LARGE = 200, 3
COLUMNS = ("kind", "smooth", "size", "mode", "cpu_seconds", "ratio", "total_seconds")
COLUMNS += ("warm_seconds", "programs", "instructions", "result")


def measure(smoke: bool) -> dict[str, Any]:
    """The yardstick, and a row for every case and mode."""
    yardstick = statistics.median(
        run_process(YARDSTICK)["cpu_seconds"] for _ in range(1 if smoke else 5)
    )
    rows = []
    show({}, COLUMNS, header=True)
    for kind, size in cases(smoke):
        large = size[1] >= LARGE
        repeats = 1 if smoke or large else REPEATS
        further = 1 if smoke else FURTHER_LARGE if large else FURTHER
        for row in rows_of(kind, size, repeats, further):
            row["ratio"] = row["cpu_seconds"] / yardstick
            rows.append(row)
            show(row, COLUMNS)
    for row in [] if smoke else command_rows([]):
        row["ratio"] = row["cpu_seconds"] / yardstick
        rows.append(row)
        show(row, COLUMNS)
    return {"yardstick_cpu_seconds": yardstick, "rows": rows}


def cases(smoke: bool) -> list[tuple[str, tuple]]:
    """One `integrate`, and a limit of every size."""
    if smoke:
        return [("integrate", SIZES[0])]
    return [("integrate", SIZES[0]), *(("find_limit", size) for size in SIZES)]


def rows_of(kind: str, size: tuple, repeats: int, further: int) -> list[dict[str, Any]]:
    """A case cold, cached, and with further runs in the same process."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("cold", "cached", "further"):
            cache = str(Path(folder, "cache")) if mode == "cached" else None
            count = further if mode == "further" else 0
            code = CASE.format(arguments=(*size, kind, count, cache))
            if mode == "cached":  # this one fills it
                run_process(code)
            runs = [run_process(code) for _ in range(1 if mode == "further" else repeats)]
            runs.sort(key=lambda run: run["cpu_seconds"])
            row = {"kind": kind, "smooth": size[0], "size": "x".join(map(str, size[1:]))}
            row |= {"mode": mode, "all_cpu_seconds": [run["cpu_seconds"] for run in runs]}
            row |= runs[len(runs) // 2] | {"result": runs[0]["results"][0]}
            if mode == "cold":
                row["instructions"] = num_instructions(code, Path(folder, "dump"))
            rows.append(row)
    return rows


def command_rows(options: list[str]) -> list[dict[str, Any]]:
    """`gflow run --quick`, the main job in its small form, without the report."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for mode, cache in (("cold", ["--no-cache"]), ("fills", []), ("cached", [])):
            command = [sys.executable, "-m", "gflow", "run", "--quick", "--no-report", "--jobs=1"]
            command += ["--output", str(Path(folder, mode)), *cache, *options]
            before = children_seconds()
            environment = kept_environment() | {"XDG_CACHE_HOME": str(Path(folder, "home"))}
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            if run.returncode not in (0, 1):  # 1: some runs did not reach what was asked for
                raise RuntimeError(f"`{' '.join(command)}` ended with {run.returncode}")
            seconds = children_seconds() - before
            rows.append({"kind": "gflow run", "mode": mode, "cpu_seconds": seconds})
    return rows


def children_seconds() -> float:
    """CPU time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kept_environment() -> dict[str, str]:
    """The environment without what is said in it of JAX, of XLA and of gflow."""
    return {k: v for k, v in os.environ.items() if k.split("_")[0] not in ("JAX", "XLA", "GFLOW")}


def num_instructions(code: str, folder: Path) -> int:
    """Of all optimised programs of a process."""
    run_process(code, XLA_FLAGS=f"--xla_dump_to={folder} --xla_dump_hlo_as_text")
    texts = folder.glob("*after_optimizations.txt")
    return sum(line.count(" = ") for text in texts for line in text.read_text().splitlines())


def run_process(code: str, **variables: str) -> dict[str, Any]:
    """What a fresh interpreter that runs `code` prints last."""
    return printed_by(["-c", code], kept_environment() | variables)


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
