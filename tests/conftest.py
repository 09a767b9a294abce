"""How JAX is set for every test, and run-time checks of gflow's annotations.

The persistent compilation cache stays off: a test that passes only because an older program was
found on disk would be worth nothing.
"""

import collections
import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Several processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Of the commands too, in processes of their own.
os.environ["GFLOW_NO_CACHE"] = "1"
# Most of the suite's time is compilation. Without LLVM's optimisation it takes a third of it, and
# without the emitters of fused loops, which go through MLIR, a third of that again.
# `XLA_FLAGS= pytest` compiles as a user's process does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
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


from gflow import _memory_maps  # noqa: E402

# Tracing makes many objects that live long, and collections walk all of them.
gc.set_threshold(50_000, 20, 50)


# Files that take minutes, with their slow tests, but hold few tests.
_LONG = ("test_notebooks.py", "test_studies.py", "test_subspace.py", "test_batch.py")
_LONG += ("test_processes.py", "test_examples.py", "test_checkpoints.py")


def pytest_configure(config):
    """Lets pytest-xdist take the files in the order that they are given."""
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # after what is not asked for was taken out
def pytest_collection_modifyitems(items):
    """The longest files first, so that processes that take them in turn end together."""
    counts = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in _LONG, -counts[item.path], item.path))


@pytest.fixture(scope="module", autouse=True)
def _keep_compiled_programs(request):
    """For tests of the same shapes, whether or not a problem is alive between them.

    Compiled programs hold memory maps, of which Linux allows a process 65 530 (`vm.max_map_count`);
    beyond, compiling ends in a segmentation fault. After a module all programs are dropped where a
    quarter of the maps is spent, or where the system does not tell.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_programs":
            patch.setattr(_memory_maps.PROGRAMS, "serve", lambda problem: None)
        yield
    held, most = _memory_maps._num_maps(), _memory_maps._most_maps()
    if held is None or most is None or held > most / 4:
        jax.clear_caches()
