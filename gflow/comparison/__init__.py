"""Runs of descent beside the flow: how far they are from it, how sharp the loss is along them."""

from gflow.comparison.distances import compare
from gflow.comparison.result import Comparison
from gflow.comparison.sharpness import sharpness_along

__all__ = ["Comparison", "compare", "sharpness_along"]
