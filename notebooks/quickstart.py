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
# # From data to a certificate
#
# Adversarial training of a homogeneous network drives the *direction* $u = \theta/|\theta|$ of its
# weights to a KKT point of
#
# $$\min \tfrac12|\theta|^2 \quad\text{subject to}\quad y_i f(x_i + \delta_i(\theta);\theta) \ge 1$$
#
# (Lyu & Zhu, ICLR 2022). This notebook follows the flow on real handwritten digits, looks at the
# margins along the way, and certifies how close the end is to such a point.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # gflow needs float64

import matplotlib.pyplot as plt
import numpy as np
import optax

import gflow
from gflow import losses, networks, perturbations, report

smoke = bool(os.environ.get("GFLOW_SMOKE"))  # a small form, for tests

# %% [markdown]
# ## Data
#
# Threes against eights, 8 × 8 pixels in $[0, 1]$. A perturbation of radius $\varepsilon$ is measured
# in these units.

# %%
digits = gflow.datasets.digits(positive=3, negative=8)
print(f"{len(digits)} examples of {digits.x.shape[1]} pixels, {int((digits.y > 0).sum())} threes")

# %% [markdown]
# ## A problem is a network, a data set, a loss and a perturbation
#
# Here a deep linear network of degree 2 under the fast gradient method in $\ell_2$. For a linear
# network the worst perturbation is known exactly, and so is the limit of the flow: the max-margin
# direction, which `gflow.max_margin` computes with SciPy.

# %%
network = networks.deep_linear((64, 8, 1))
radius = 0.1
problem = gflow.Problem(
    network,
    digits,
    loss=losses.exponential(),
    perturbation=perturbations.fgm(radius, order=2),
)
start = network.init(0, scale=0.5)
reference = gflow.max_margin(digits, radius=radius, order=2)
print(f"largest adversarial margin of a unit predictor: {reference.margin:.6f}")

# %% [markdown]
# ## The flow
#
# `integrate` follows $\dot\theta = -\nabla \sum_i \ell(q_i)$ with error control until the first of the
# targets in `Until` is reached.

# %%
until = gflow.Until(log_loss=1.0 if smoke else -6.0)
trajectory = gflow.integrate(problem, start, until=until, tolerance=1e-6)
print(trajectory)
print(trajectory.stats)

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
report.plot_loss(trajectory, axes[0])
report.plot_margins(trajectory, axes[1])
report.plot_layer_alignment(trajectory, axes[2])
plt.show()

# %% [markdown]
# The loss falls like $1/t$ while the margins move like $1/\log t$: this is why the limit cannot be
# seen by waiting. The layers align early.
#
# A trajectory can be read at any time, loss or norm; it is integrated again from the nearest saved
# point, so the answer is as accurate as the run.


# %%
def distance_to_limit(params):
    predictor = np.asarray(network.predictor(params))
    return np.linalg.norm(predictor / np.linalg.norm(predictor) - reference.direction)


print("log loss   distance of the predictor to the max-margin direction")
for log_loss in np.linspace(float(trajectory.log_loss[-1]) + 4, trajectory.log_loss[-1], 5):
    print(f"{log_loss:8.2f}   {distance_to_limit(trajectory.at(log_loss=log_loss)):.4f}")

# %% [markdown]
# ## The certificate
#
# How far is the end from a KKT point? `stationarity` is $|u - \sum_i\lambda_i\nabla q_i(u)|$ with the
# best multipliers $\lambda \ge 0$; `strong` is the margin under a stronger attack than the one in
# training.

# %%
certificate = gflow.certify(problem, trajectory.params)
print(certificate)

# %% [markdown]
# ## A nonlinear network, and gradient descent beside the flow
#
# A ReLU² network (degree 3) under the fast gradient sign method, smoothed so that the flow has no
# kinks; beside it gradient descent on the same problem with two step sizes. Time is that of the flow:
# the sum of the step sizes.

# %%
square = networks.mlp((64, 4 if smoke else 8, 1), power=2)
nonlinear = gflow.Problem(
    square,
    digits,
    loss=losses.logistic(),
    perturbation=perturbations.fgsm(0.02, smoothing=0.1),
)
initial = square.init(1)
end = 0.005 if smoke else 0.05
flow = gflow.integrate(nonlinear, initial, until=gflow.Until(time=end), tolerance=1e-6)
distances = {}
for step_size in (2e-4, 5e-5):
    descent = gflow.descend(
        nonlinear, initial, optax.sgd(step_size), num_steps=round(end / step_size), save=None
    )
    times = np.linspace(0, end, 9)[1:]
    pairs = [(flow.at(time=t), descent.at(time=t)) for t in times]
    distances[step_size] = [float(gflow.measures.direction_distance(*pair)) for pair in pairs]
    print(f"step size {step_size:g}: direction off by {distances[step_size][-1]:.2e} at t = {end}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
report.plot_loss(flow, axes[0])
for step_size, values in distances.items():
    axes[1].semilogy(times, values, marker="o", label=f"step size {step_size:g}")
axes[1].set(xlabel="time", ylabel="distance of directions, descent to flow")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Keep it
#
# A trajectory goes to one file with its settings and its problem, and comes back ready to be read.

# %%
path = trajectory.save("trajectory.npz")
print(gflow.load(path))
path.unlink()
