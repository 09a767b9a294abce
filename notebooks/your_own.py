# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own network, loss and attack, and weights from PyTorch or Flax
#
# *How do I put what I study into gflow, and how do I know that I put it in rightly?*
#
# A network is a function that is homogeneous in its parameters; a loss gives three logarithms; an attack is a function of
# an example's margin. Each is a few lines. gflow checks what its theory needs before it integrates anything, and the last
# section carries trained weights over from other libraries, with a check that both forward passes agree.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gflow
from gflow import losses, networks, perturbations, report

gflow.use_compilation_cache()
report.use_style()
small = bool(os.environ.get("GFLOW_SMOKE"))  # a small form, for tests

# %% [markdown]
# ## A network
#
# Any function `apply(params, x)` of one example, with the degree $L$ for which $f(x; c\,\theta) = c^L f(x;\theta)$. Here
# a bilinear attention: the value $v^\top x$ times the squared score $x^\top K x$, over a few heads. Each head is of
# degree 1 in the value and 2 in the keys, 3 in all.


# %%
def attention(params, x):
    scores = jnp.einsum("hkd,d->hk", params["keys"], x)
    return jnp.sum((params["values"] @ x) * jnp.sum(scores**2, axis=1))


def fresh(key):
    first, second = jax.random.split(key)
    return {
        "keys": jax.random.normal(first, (2, 2, 2)),
        "values": jax.random.normal(second, (2, 2)),
    }


network = networks.custom(attention, degree=3, init=fresh, num_inputs=2)

# %% [markdown]
# ## A loss
#
# A subclass of `AbstractLoss` with $\log \ell$, $\log(-\ell')$ and $\ell^{-1}$, all in logarithms so that losses of
# $e^{-1000}$ are nothing special. The theory needs an exponential tail, $\log(-\ell'(q)) = -q + O(1)$. Here the sigmoid
# loss $\ell(q) = 1/(1 + e^q)$, which is bounded and not convex.


# %%
class Sigmoid(losses.AbstractLoss):
    def log_value(self, margin):
        return jax.nn.log_sigmoid(-margin)

    def log_slope(self, margin):
        return jax.nn.log_sigmoid(margin) + jax.nn.log_sigmoid(-margin)

    def inverse(self, log_loss):
        return jnp.log1p(-jnp.exp(log_loss)) - log_loss


# %% [markdown]
# ## An attack
#
# A subclass of `AbstractPerturbation`: the perturbation of one example, from its margin as a function of the input. It
# must depend on the direction of the weights alone, so it steps along a *normalised* gradient of the margin. Here one
# that can only change the first input, by the length `radius` where the margin rises or falls there.


# %%
class FirstInput(perturbations.AbstractPerturbation):
    radius: jax.Array
    order: float = eqx.field(static=True, default=2.0)

    def __call__(self, margin, x, start):
        slope = jax.grad(margin)(x)
        only = jnp.zeros_like(slope).at[0].set(slope[0])
        length = jnp.linalg.norm(slope)
        return -self.radius * only / jnp.where(length == 0, 1.0, length)


attack = FirstInput(jnp.asarray(0.4))

# %% [markdown]
# ## To the limit
#
# From here on nothing is special about them.

# %%
data = gflow.datasets.gaussian(12 if small else 20, 2, gap=0.5, seed=2)
problem = gflow.Problem(network, data, loss=Sigmoid(), perturbation=attack, gradient="total")
limit = gflow.find_limit(problem, network.init(0))
print(limit)
print(limit.certificate)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4))
report.plot_margins(limit.trajectory, axes[0], against="log_loss", limit=limit.margin)
report.plot_plane(problem, limit.direction, axes[1])
axes[1].legend(frameon=True)
plt.show()

# %% [markdown]
# Theory (Lyu & Li 2020, Lyu & Zhu 2022) asks only for homogeneity, an exponential tail and a scale-invariant attack, so
# it predicts a KKT point of the adversarial margin here too. Seen: the smoothed margin rises to the dotted line, the
# stationarity is rounding, and the attack moves the examples along the first input only. The certificate's strong attack
# may use both inputs, within the same radius, and leaves a much smaller margin: as an $\ell_2$ attack this one is weak.
#
# ## What the checks refuse
#
# Wrong parts are refused before anything is integrated, with a sentence that says what is wrong.


# %%
class RawGradient(FirstInput):
    def __call__(self, margin, x, start):
        return -self.radius * jax.grad(margin)(x)  # its length grows with the weights


def with_bias(params, x):
    return attention(params, x) + jnp.sum(params["values"])  # of degree 1, not 3


def refused(what, network=network, attack=attack, start=None):
    wrong = gflow.Problem(network, data, loss=Sigmoid(), perturbation=attack)
    try:
        gflow.integrate(wrong, start or network.init(0), until=gflow.Until(time=1.0))
    except (TypeError, ValueError) as error:
        print(f"{what}:\n    {error}\n")
    else:
        raise AssertionError(f"{what} was not refused")


refused("a wrong degree", network=networks.custom(attention, degree=2, init=fresh))
refused("a bias in the last layer", network=networks.custom(with_bias, degree=3, init=fresh))
refused("an attack along the raw gradient", attack=RawGradient(jnp.asarray(0.4)))
refused("a start of zeros", start=jax.tree.map(jnp.zeros_like, network.init(0)))

# %% [markdown]
# ## Weights from PyTorch
#
# `torch.nn.Linear` holds its weight as (out, in), the layout of gflow's dense layers, and computes `x @ weight.T + bias`.
# A bias of the first layer is one more column, for `networks.mlp(..., bias=True)`; later layers must have none, since they
# break homogeneity. In PyTorch:
#
# ```python
# model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
# np.savez("model.npz", **{name: value.numpy() for name, value in model.state_dict().items()})
# ```
#
# Nothing of PyTorch is needed to read the file. So that this notebook needs no PyTorch either, the arrays are made here,
# with the names and layouts that `state_dict` has, in float32 as there.

# %%
rng = np.random.default_rng(3)
state = {
    "0.weight": rng.normal(size=(5, 3)).astype(np.float32),
    "0.bias": rng.normal(size=5).astype(np.float32),
    "2.weight": rng.normal(size=(4, 5)).astype(np.float32),
    "4.weight": rng.normal(size=(1, 4)).astype(np.float32),
}

brought = networks.mlp((3, 5, 4, 1), bias=True)
first = np.column_stack([state["0.weight"], state["0.bias"]])  # (out, in + 1)
params = tuple(np.asarray(layer, float) for layer in (first, state["2.weight"], state["4.weight"]))


def torch_forward(x):
    hidden = np.maximum(x @ state["0.weight"].T + state["0.bias"], 0)
    hidden = np.maximum(hidden @ state["2.weight"].T, 0)
    return (hidden @ state["4.weight"].T)[:, 0]


inputs = rng.normal(size=(100, 3))
outputs = np.array([brought.apply(params, x) for x in inputs])
print(
    f"largest difference of the outputs, PyTorch's formula and gflow: {np.abs(outputs - torch_forward(inputs)).max():.1e}"
)
assert np.allclose(outputs, torch_forward(inputs), rtol=1e-12)

# %% [markdown]
# ## Weights from Flax
#
# `flax.linen.Dense` holds a `kernel` of (in, out): transposed, it is gflow's layer. With `params =
# model.init(key, x)["params"]`, every leaf as a NumPy array:

# %%
flax = {
    "Dense_0": {"kernel": state["0.weight"].T, "bias": state["0.bias"]},
    "Dense_1": {"kernel": state["2.weight"].T},
    "Dense_2": {"kernel": state["4.weight"].T},
}

first = np.vstack([flax["Dense_0"]["kernel"], flax["Dense_0"]["bias"]]).T
rest = [flax[name]["kernel"].T for name in ("Dense_1", "Dense_2")]
from_flax = tuple(np.asarray(layer, float) for layer in (first, *rest))


def flax_forward(x):
    hidden = np.maximum(x @ flax["Dense_0"]["kernel"] + flax["Dense_0"]["bias"], 0)
    hidden = np.maximum(hidden @ flax["Dense_1"]["kernel"], 0)
    return (hidden @ flax["Dense_2"]["kernel"])[:, 0]


outputs = np.array([brought.apply(from_flax, x) for x in inputs])
print(
    f"largest difference of the outputs, Flax's formula and gflow:    {np.abs(outputs - flax_forward(inputs)).max():.1e}"
)
assert np.allclose(outputs, flax_forward(inputs), rtol=1e-12)

# %% [markdown]
# ## How good are they?
#
# `certify` needs the point alone, so weights that were trained elsewhere can be judged as they are: their margins clean,
# attacked and strongly attacked, and how far they are from a KKT point. Here the labels are those that the network gives.

# %%
clear = np.argsort(outputs)[np.r_[:10, -10:0]]  # the ten smallest and the ten largest outputs
judged = gflow.Problem(
    brought,
    gflow.Dataset(inputs[clear], np.sign(outputs[clear])),
    loss=losses.logistic(),
    perturbation=perturbations.fgm(0.05, order=2),
)
print(gflow.certify(judged, params))

# %% [markdown]
# A positive normalized margin says that the attack changes no label. The stationarity is near 1: random weights are not
# where training would leave them. `gflow.find_limit(judged, params)` would go on from here.
