"""Parameters as one flat vector: leaves of every shape, also without axes and without entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout

SHAPES = {"scalar": [()], "mixed": [(2, 3), (), (0, 3), (1,)], "scalars": [(), (), ()]}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
@pytest.mark.parametrize("arrays", [np, jnp])
def test_leaves_come_back_from_the_vector(shapes, lead, arrays):
    generator = np.random.default_rng(0)
    layout = Layout.of([np.ones(shape) for shape in shapes])
    vectors = generator.normal(size=(*lead, layout.size))
    leaves = layout.unflatten(arrays.asarray(vectors))
    assert [leaf.shape for leaf in leaves] == [(*lead, *shape) for shape in shapes]
    apart = [np.reshape(leaf, (*lead, -1)) for leaf in leaves]
    np.testing.assert_array_equal(np.concatenate(apart, axis=-1), vectors)
    if not lead:
        np.testing.assert_array_equal(layout.flatten(leaves), vectors)
        np.testing.assert_array_equal(layout.flatten_on_host(leaves), vectors)


def scaled(params, x):
    """`s w.x`, of degree 2, whether s has an axis or not."""
    return jnp.sum(params["s"]) * (params["w"] @ x)


def test_a_leaf_without_axes_is_as_good_as_one_with_an_axis():
    data = gflow.datasets.gaussian(6, 3, gap=1.0, seed=0)
    problem = gflow.Problem(
        networks.custom(scaled, degree=2),
        data,
        loss=losses.logistic(),
        perturbation=perturbations.fgm(0.05),
    )
    start = np.array([0.5, -0.2, 0.1])
    flows = []
    for scale in (0.8, np.array(0.8), jnp.array(0.8), np.array([0.8])):
        params = {"s": scale, "w": start}
        flow = gflow.integrate(problem, params, until=gflow.Until(log_loss=-3.0))
        assert flow.successful and np.shape(flow.params["s"]) == np.shape(scale)
        assert np.shape(flow.at(log_loss=-1.0)["s"]) == np.shape(scale)
        flows.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(flow.params)]))
    # The same operations in the same order, but compiled for another shape.
    for other in flows[:-1]:
        np.testing.assert_allclose(other, flows[-1], rtol=1e-9)
