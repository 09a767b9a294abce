"""Many limits at once."""

from gflow.batch.finding import find_limits

__all__ = ["find_limits"]
