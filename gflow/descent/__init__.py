"""The discrete twin of the flow: descent with any optax optimizer, recorded alike.

batch        the objective of a step: of all examples, or of a mini-batch
stepping     steps as one compiled loop
history      the points of a run, and what is measured of them in the end
keeping      a run between two segments, as a file holds it
reading      points between saved ones
run          `descend`
"""

from gflow.descent.backward_error import backward_error_flow
from gflow.descent.batch import Objective
from gflow.descent.reading import read_between
from gflow.descent.run import descend

__all__ = ["Objective", "backward_error_flow", "descend", "read_between"]
