"""Claims of the literature as experiments: a prediction, a measurement, a verdict, a figure.

    import jax
    jax.config.update("jax_enable_x64", True)

    from gflow import studies
    print(studies.run("linear-clean"))

`studies.NAMES` lists them; `gflow study --list` says what each claims. A study's own file is
imported when it is asked for.
"""

from gflow.studies.ledger import write_ledger
from gflow.studies.registry import NAMES, find, run
from gflow.studies.study import Finding, Measurement, Study, Verdict

__all__ = [
    "NAMES",
    "Finding",
    "Measurement",
    "Study",
    "Verdict",
    "find",
    "run",
    "write_ledger",
]
