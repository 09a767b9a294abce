"""Some eigenvalues of a large system are those of the whole: found, and none overlooked."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from gflow.kkt import curvature as module
from gflow.kkt.curvature import curvature
from gflow.kkt.settings import Sizes
from gflow.kkt.system import KKTSystem

# Every system is a large one.
LARGE = Sizes(factored=0)

SIZE, ACTIVE = 200, 12
BULK = np.linspace(0.3, 1.5, SIZE)
SPECTRA = {
    "strict maximum": [0.003, 0.01],
    "slow saddle": [-0.001, 0.0, 0.004],
    "fast saddle": [-4.0, -0.6, 0.002],
    "between slow and fast": [-0.024, *np.linspace(0.0, 0.01, 20)],
    "large family": [-0.015, *np.zeros(30)],
    "large family, strict else": np.zeros(30),
}


def made(spectrum, symmetric: bool, repeated: bool) -> tuple[KKTSystem, np.ndarray]:
    """A KKT system whose flow on the tangent space has these eigenvalues, among others."""
    generator = np.random.default_rng(5)
    basis = ortho_group.rvs(SIZE, random_state=7)
    tangent, slopes = basis[:, ACTIVE:], basis[:, :ACTIVE].T
    values = np.concatenate([spectrum, BULK[: SIZE - ACTIVE - len(spectrum)]])
    inner = np.eye(SIZE - ACTIVE)
    if not symmetric:
        inner = inner + 0.2 * np.triu(generator.normal(size=inner.shape), 1) / np.sqrt(SIZE)
    hessian = tangent @ inner @ np.diag(values) @ np.linalg.inv(inner) @ tangent.T
    gradients = slopes.copy()
    if not symmetric:
        # What the gradients push away is free: it adds no eigenvalue on the tangent space.
        gradients = slopes + 0.1 * generator.normal(size=slopes.shape) @ tangent @ tangent.T
        hessian = hessian + gradients.T @ generator.normal(size=(ACTIVE, SIZE))
    else:
        hessian = hessian + slopes.T @ np.diag(generator.normal(size=ACTIVE)) @ slopes
    if repeated:
        slopes, gradients = np.vstack([slopes, slopes[:1]]), np.vstack([gradients, gradients[:1]])
    margins = np.ones(len(slopes))
    return KKTSystem(np.zeros(SIZE), margins, hessian, slopes, gradients), margins > 0


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
def test_none_is_overlooked(name, symmetric, repeated):
    spectrum = np.sort(SPECTRA[name])
    at, active = made(spectrum, symmetric, repeated)
    whole = curvature(at, active)
    np.testing.assert_allclose(whole.values[: len(spectrum)], spectrum, atol=1e-9)
    few = curvature(at, active, sizes=LARGE)
    assert len(few.values) < len(whole.values)
    negative = whole.values < -whole.tolerance
    assert few.unstable.sum() == negative.sum()
    assert few.neutral.any() == whole.neutral.any()
    # Leftmost ones are known to within 3e-3, those near 0 to rounding.
    np.testing.assert_allclose(few.values[few.unstable], whole.values[negative], atol=3e-3)
    nearest = min(len(spectrum), 3)
    near = [value for value in spectrum if abs(value) < 0.015]
    for value in near[:nearest]:
        assert np.abs(few.values - value).min() < 1e-8
    # They are tangent to the active margins, and the flow scales them.
    vectors = few.vectors[:, few.unstable]
    np.testing.assert_allclose(at.slopes @ vectors, 0, atol=1e-6)


def test_where_none_is_found_all_are_computed(monkeypatch):
    at, active = made([-0.5, 0.01], True, False)
    monkeypatch.setattr(module, "_smallest", lambda *_: None)
    found = curvature(at, active, sizes=LARGE)
    assert len(found.values) == SIZE - ACTIVE
    assert found.values[0] == pytest.approx(-0.5)
