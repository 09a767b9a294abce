"""What the installed packages must do, and what `pyproject.toml` must ask of them."""

import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
ALL = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
    if not line.startswith("gflow[")
]
PINS = {
    requirement.name: requirement
    for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}

# Wrong with jaxlib 0.10.2 on CPU (https://github.com/jax-ml/jax/issues/39103): from 16 385 points
# on, for matrices of 9 or 10 entries and not of 6 or 32. At 20 000 points 18 % of the sums were off
# by as much as their size.
NUM_POINTS = 20_000
SHAPES = [(3, 2), (3, 3), (2, 5), (16, 2)]
REDUCTIONS = {
    "sum of squares": (lambda h: jnp.sum(h**2), lambda h: np.sum(h**2, axis=1)),
    "sum of rectified": (
        lambda h: jnp.sum(jax.nn.relu(h)),
        lambda h: np.sum(np.maximum(h, 0), axis=1),
    ),
    "largest": (jnp.max, lambda h: np.max(h, axis=1)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_matrix_vector_products_are_reduced_rightly(shape, name):
    reduce, reduce_rows = REDUCTIONS[name]
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=shape)
    points = generator.normal(size=(NUM_POINTS, shape[1]))
    computed = jax.jit(jax.vmap(lambda point: reduce(matrix @ point)))(points)
    # Sums of at most 16 products of at most 5 terms, all of order 1 to 100.
    np.testing.assert_allclose(computed, reduce_rows(points @ matrix.T), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("package", [jax, jaxlib], ids=lambda package: package.__name__)
def test_the_faulty_release_is_neither_installed_nor_allowed(package):
    specifier = CORE[package.__name__].specifier
    assert not specifier.contains("0.10.2")
    assert package.__version__ in specifier


@pytest.mark.parametrize("requirement", ALL, ids=lambda requirement: requirement.name)
def test_every_lower_bound_is_the_version_that_is_pinned_for_the_lowest_run(requirement):
    (lower,) = (s.version for s in requirement.specifier if s.operator == ">=")
    (pin,) = PINS[requirement.name].specifier
    assert pin.operator == "=="
    assert Version(pin.version) == Version(lower)
