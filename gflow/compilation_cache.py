"""Compiled programs that outlast the process: JAX's persistent compilation cache, switched on.

The first `find_limit` of a process spends most of its time in the compiler; with the programs of an
earlier process at hand it takes a fraction of that. JAX keeps them in a folder, if it is told which
one. It is told for the whole process, programs that are not gflow's included, so gflow does it only
where it is asked to: by `use_compilation_cache`, and in the `gflow` commands. Programs of gflow are
kept in a folder within that one (`gflow._executables`).
"""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import platformdirs

from gflow import _executables
from gflow._signatures import named

OFF = "GFLOW_NO_CACHE"
"""The environment variable that, set to anything but nothing or 0, turns the cache off."""

# A search of a limit leaves about 1 MB, one of another shape as much again.
_MOST_BYTES = 2**30
_CPU_INFO = Path("/proc/cpuinfo")
# Of the log of jaxlib, `jax/__init__.py` sets this level unless the user has set another.
_LOG_LEVEL, _USUAL_LEVEL = "TF_CPP_MIN_LOG_LEVEL", "1"


@named()
def use_compilation_cache(
    folder: str | os.PathLike[str] | None = None, *, max_bytes: int = _MOST_BYTES
) -> Path | None:
    """Keeps compiled programs on disk from now on, for this process and later ones.

    It sets JAX's persistent compilation cache, which is one for the whole process: programs of your
    own are kept there too. On a CPU gflow keeps its own programs beside them, by the arguments that
    they were made for, so that a later process need not trace them either. It does not know again
    those that contain a network, a loss or an attack of your own: these JAX keeps. What stands in
    the folder is run, so it must be yours.

    Call it once, before the first run. Nothing is changed where a cache has been set already
    (`jax_compilation_cache_dir`, `JAX_COMPILATION_CACHE_DIR`), where JAX's is disabled
    (`jax_enable_compilation_cache`), or where the environment variable `GFLOW_NO_CACHE` is set. A
    program that is found there is the one that would have been compiled, so no result depends on
    the cache.

    From here on jaxlib logs fatal errors only, unless `TF_CPP_MIN_LOG_LEVEL` or
    `jax_logging_level` is set: on many processors it reports, falsely, pages of processor features
    as missing for every program that it reads.

    Args:
        folder: where to keep them; None for `gflow` in the user's cache folder (`~/.cache` or
            `XDG_CACHE_HOME` on Linux, `~/Library/Caches` on macOS). Within it the programs stand in
            a folder that names the version of jaxlib and the processor, so that machines of unlike
            processors may share a home.
        max_bytes: what that folder holds at most, half of it in programs of gflow and half in
            others; of each those that were not used for longest go first.

    Returns:
        The folder of the programs; None where nothing was changed, or where no folder was given and
        the user's cannot be written to.

    Raises:
        ValueError: `max_bytes` is not positive.
        OSError: the given `folder` cannot be made or written to.
    """
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes <= 0:
        raise ValueError(
            f"`use_compilation_cache(max_bytes={max_bytes!r})`: a positive number of bytes. "
            f"To turn the cache off, leave the call out or set `{OFF}=1`."
        )
    import jax

    if turned_off() or not _setting(jax, "jax_enable_compilation_cache"):
        return None
    if _setting(jax, "jax_compilation_cache_dir"):
        return None
    kept = Path(platformdirs.user_cache_dir("gflow") if folder is None else folder).absolute()
    kept = kept / _kind_of_machine()
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _check_writable(kept)
    except OSError:
        if folder is None:
            return None
        raise
    _switch_on(jax, kept, max_bytes - max_bytes // 2)
    _executables.keep_in(kept / "programs", max_bytes // 2)
    return kept


def turned_off() -> bool:
    """Whether the environment turns the cache off."""
    return os.environ.get(OFF, "") not in ("", "0")


def _setting(jax: Any, name: str) -> Any:
    # By name, since the type checker knows only some of them.
    return getattr(jax.config, name)


def _check_writable(folder: Path) -> None:
    """Raises OSError where no file can be made in it."""
    probe = folder / f".gflow-{os.getpid()}"
    probe.touch()
    probe.unlink()


def _switch_on(jax: Any, folder: Path, max_bytes: int) -> None:
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", max_bytes)
    # JAX keeps what took a second to compile; gflow's programs are many small ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # What JAX found before, that there is no cache, it would remember.
    compilation_cache.reset_cache()
    _silence(jax)


def _silence(jax: Any) -> None:
    """Only fatal errors in the log of jaxlib, unless the user has chosen what is to be there."""
    level = _setting(jax, "jax_logging_level")
    chosen = os.environ.get(_LOG_LEVEL, _USUAL_LEVEL) != _USUAL_LEVEL
    if chosen or level not in (None, "NOTSET"):
        return
    # Sets the level of both logs; going back leaves that of jaxlib.
    jax.config.update("jax_logging_level", "CRITICAL")
    jax.config.update("jax_logging_level", level)


def _kind_of_machine() -> str:
    """The version of jaxlib, and a digest of what programs are compiled for.

    JAX has the features of the processor in the names of the programs too, with some of its
    versions and devices; where it cannot tell them, it does without.
    """
    import jaxlib.version

    text = "\n".join([platform.system(), platform.machine(), *_processor()])
    return f"jaxlib-{jaxlib.version.__version__}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _processor() -> list[str]:
    """Model and features of the processor, as far as the system tells."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return [platform.processor()]
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return sorted({line for line in lines if line.partition(":")[0].strip() in names})
