"""The persistent compilation cache: switched on where it is asked for and nowhere else."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

import gflow
from gflow import compilation_cache
from gflow.__main__ import main
from gflow.commands import building
from gflow.commands.reading import UserError

NAMES = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_logging_level",
)


@pytest.fixture(autouse=True)
def _as_a_user_finds_it(monkeypatch, tmp_path):
    """JAX's cache enabled without a folder, and a cache folder of the user's; as before after."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("GFLOW_NO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def settings():
    return {name: getattr(jax.config, name) for name in NAMES}


def test_programs_are_kept_in_the_given_folder(tmp_path):
    jax.jit(lambda x: x + 1.0)(np.arange(3.0))  # before: JAX takes note that there is no cache
    folder = gflow.use_compilation_cache(tmp_path / "own", max_bytes=10**7)
    assert folder is not None and folder.parent == tmp_path / "own"
    assert jax.config.jax_compilation_cache_max_size == 10**7 // 2
    value = jax.jit(lambda x: jnp.sin(x) @ x)(np.arange(3.0))
    assert value == pytest.approx(np.sin(np.arange(3.0)) @ np.arange(3.0), rel=1e-14)
    assert len(list(folder.glob("*-cache"))) == 1


def test_the_cache_stays_within_its_size(tmp_path):
    folder = gflow.use_compilation_cache(tmp_path, max_bytes=12_000)
    assert folder is not None
    for n in range(2, 8):
        jax.jit(lambda x: jnp.sin(x) @ x)(np.arange(float(n)))
    kept = list(folder.glob("*-cache"))
    assert 1 <= len(kept) < 6
    assert sum(file.stat().st_size for file in kept) <= 6000


def test_without_a_folder_it_is_that_of_the_user(tmp_path):
    folder = gflow.use_compilation_cache()
    assert folder is not None and tmp_path in folder.parents
    assert "gflow" in folder.parts
    assert folder.is_dir()


def test_the_folder_names_jaxlib_and_the_processor(tmp_path, monkeypatch):
    def made(lines):
        monkeypatch.setattr(compilation_cache, "_processor", lambda: lines)
        jax.config.update("jax_compilation_cache_dir", None)
        return gflow.use_compilation_cache(tmp_path)

    old, new, again = made(["flags: avx2"]), made(["flags: avx2 avx512f"]), made(["flags: avx2"])
    assert old != new and old == again
    assert all(folder is not None and jax.lib.__version__ in folder.name for folder in (old, new))


def test_this_processor_is_told():
    assert all(compilation_cache._processor())


@pytest.mark.parametrize("value", ["1", "yes"])
def test_the_environment_turns_it_off(monkeypatch, value, tmp_path):
    monkeypatch.setenv("GFLOW_NO_CACHE", value)
    before = settings()
    assert gflow.use_compilation_cache(tmp_path / "own") is None
    assert settings() == before
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("value", ["", "0"])
def test_the_environment_may_leave_it_on(monkeypatch, value, tmp_path):
    monkeypatch.setenv("GFLOW_NO_CACHE", value)
    assert gflow.use_compilation_cache(tmp_path) is not None


def test_a_cache_that_is_set_already_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    before = settings()
    assert gflow.use_compilation_cache(tmp_path / "own") is None
    assert settings() == before


def test_a_cache_that_is_disabled_stays_so(tmp_path):
    jax.config.update("jax_enable_compilation_cache", False)
    before = settings()
    assert gflow.use_compilation_cache(tmp_path) is None
    assert settings() == before


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    before = settings()
    with pytest.raises(OSError):
        gflow.use_compilation_cache(file / "below")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.setenv("HOME", str(file))
    assert gflow.use_compilation_cache() is None
    assert settings() == before


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "1 GB"])
@pytest.mark.usefixtures("own_words")
def test_a_size_that_is_none(size):
    with pytest.raises(ValueError, match="use_compilation_cache"):
        gflow.use_compilation_cache(max_bytes=size)


def test_a_chosen_level_of_the_log_stays(tmp_path):
    jax.config.update("jax_logging_level", "ERROR")
    assert gflow.use_compilation_cache(tmp_path) is not None
    assert jax.config.jax_logging_level == "ERROR"


PROGRAM = """
import sys, jax, gflow
gflow.use_compilation_cache(sys.argv[1])
print(jax.jit(lambda x: x + 1.0)(1.0))
"""


def test_neither_the_first_process_nor_the_next_writes_pages(tmp_path):
    changed = ("JAX_ENABLE_COMPILATION_CACHE", "TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in changed}
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert (run.stdout, run.stderr) == ("2.0\n", "")
    assert list(tmp_path.rglob("*-cache"))


# In the commands


@pytest.fixture
def calls(monkeypatch):
    """How `use_compilation_cache` is called by `gflow run`, which ends before it does anything."""
    made = []

    def use(folder):
        made.append(folder)
        raise OSError("no more")

    monkeypatch.setattr(compilation_cache, "use_compilation_cache", use)
    return made


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], [None]), (["--cache", "kept"], ["kept"]), (["--no-cache"], [])],
    ids=["by default", "in a folder", "off"],
)
def test_the_command_keeps_programs(tmp_path, monkeypatch, calls, capsys, options, expected):
    def ends(*_, **__):
        raise UserError("the end")

    monkeypatch.setattr(building, "build", ends)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--quick", "--no-report", "--jobs=1", "-o", "out", *options]) == 2
    assert [None if folder is None else str(folder) for folder in calls] == expected
    # A folder that was named must be usable; that of the user need not be.
    assert ("--cache kept" in capsys.readouterr().err) == (expected == ["kept"])
