"""The checker that the import hook of `conftest.py` puts on every function and class of gflow."""

from beartype import BeartypeConf, beartype

# An int may stand for a float, as PEP 484 has it: `mlp(widths, power=2)`.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
