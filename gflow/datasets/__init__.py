"""Data sets: real digits, and synthetic sets whose margin is known.

Everything here is NumPy, so that making data costs no compilation.
"""

from gflow.datasets._dataset import Dataset
from gflow.datasets._digits import digits, mnist, mnist_pair
from gflow.datasets._synthetic import gaussian, random_labels, soudry

__all__ = ["Dataset", "digits", "gaussian", "mnist", "mnist_pair", "random_labels", "soudry"]
