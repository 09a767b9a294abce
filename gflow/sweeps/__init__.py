"""Sweeps: the limits of a table of settings, as a table."""

from gflow.sweeps.result import Sweep
from gflow.sweeps.run import Run
from gflow.sweeps.running import sweep

__all__ = ["Run", "Sweep", "sweep"]
