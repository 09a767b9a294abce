"""The studies by name. The file of each is imported when that study is asked for."""

import time
from difflib import get_close_matches
from importlib import import_module

from gflow.studies.study import Study, Verdict

_FILES = {
    "linear-clean": "linear_clean",
    "linear-l2": "linear_l2",
    "linear-critical": "linear_critical",
    "linear-beyond": "linear_beyond",
    "path-of-limits": "path_of_limits",
    "deep-linear": "deep_linear",
    "diagonal": "diagonal",
    "rates": "rates",
    "kernel-svm": "kernel_svm",
    "scale-invariance": "scale_invariance",
    "smoothed-margin": "smoothed_margin",
    "minimum-norms": "minimum_norms",
    "own-norm": "own_norm",
    "clusters": "clusters",
    "loss-based": "loss_based",
    "matrix": "matrix",
    "paper-experiment": "paper_experiment",
}

NAMES = tuple(_FILES)
"""The names of all studies."""


def find(name: str) -> Study:
    """The study of that name; nothing is computed.

    Raises:
        ValueError: there is none.
    """
    if name not in _FILES:
        meant = get_close_matches(name, NAMES, n=1)
        guess = f" Perhaps '{meant[0]}' is meant." if meant else ""
        raise ValueError(f"there is no study '{name}'.{guess} They are: {', '.join(NAMES)}.")
    return import_module(f"gflow.studies.{_FILES[name]}").STUDY


def run(name: str, *, small: bool = True) -> Verdict:
    """Measures what the study predicts.

    Args:
        name: one of `NAMES`.
        small: the small form, less than a minute; False for the full form.

    Raises:
        ValueError: there is no such study.

    A run of the flow, or a search, that fails, and data that cannot be had, are a verdict whose
    `error` tells it.
    """
    study = find(name)
    start, processor = time.perf_counter(), time.process_time()
    try:
        measured, error = study.run(small), ""
    except (RuntimeError, OSError, ImportError) as failed:
        # `RunFailed`, `LimitFailed`; data that are not there and cannot be fetched.
        measured, error = None, str(failed)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - processor
    findings, data = ((), {}) if measured is None else (measured.findings, measured.data)
    return Verdict(study, small, findings, data, seconds, error, cpu_seconds)
