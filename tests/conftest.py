"""How JAX is set for every test, and run-time checks of gflow's annotations.

The persistent compilation cache stays off: a test that passes only because an older program was
found on disk would be worth nothing.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Of the commands too, in processes of their own.
os.environ["GFLOW_NO_CACHE"] = "1"
# Most of the suite's time is compilation, which without LLVM's optimisation takes a third of it.
# `XLA_FLAGS= pytest` compiles as a user's process does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_enable_compilation_cache", False)

# Before the first import of gflow. Names the function in `typechecking.py`, beside this file.
jaxtyping.install_import_hook("gflow", "typechecking.checked")

# The same examples in every run; compilation makes the first one slow.
hypothesis.settings.register_profile("gflow", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("gflow")


@pytest.fixture(scope="module")
def own_words():
    """Without the checks of annotations, whose messages come before gflow's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Drops them after every module.

    Each holds memory maps, of which Linux allows a process 65 530 (`vm.max_map_count`); beyond,
    compiling ends in a segmentation fault. Modules share hardly any programs.
    """
    yield
    jax.clear_caches()
