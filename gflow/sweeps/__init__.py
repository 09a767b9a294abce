"""Sweeps: the limits of a table of settings, as a table."""

from gflow.sweeps.result import Run, Sweep
from gflow.sweeps.running import sweep

__all__ = ["Run", "Sweep", "sweep"]
