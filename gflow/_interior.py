"""Clarabel's interior points, imported where they are used and set alike everywhere."""

import importlib
from typing import Any


def clarabel_with(tolerance: float, most_iterations: int) -> tuple[Any, Any]:
    """The module, and settings with this tolerance of gaps and feasibility; silent."""
    # By name, since a type checker finds nothing in the compiled module.
    clarabel = importlib.import_module("clarabel")
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_iter = most_iterations
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    # One thread: the same digits on every machine.
    if hasattr(settings, "max_threads"):  # older releases have one thread only
        settings.max_threads = 1
    return clarabel, settings
