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
# # From data to the limit
#
# *Where does adversarial training drive the weights of a network, and how sure is the answer?*
#
# For a homogeneous network it drives the *direction* $u = \theta/|\theta|$ of the weights to a KKT point of
#
# $$\min \tfrac12|\theta|^2 \quad\text{subject to}\quad y_i f(x_i + \delta_i(\theta);\theta) \ge 1$$
#
# (Lyu & Zhu, ICLR 2022). This notebook follows the flow on real handwritten digits, goes on to its limit, and
# certifies that the limit is such a point.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # gflow needs float64

import matplotlib.pyplot as plt
import numpy as np

import gflow
from gflow import losses, networks, perturbations, report

gflow.use_compilation_cache()  # programs compiled once are kept for the next session
report.use_style()
small = bool(os.environ.get("GFLOW_SMOKE"))  # a small form, for tests

# %% [markdown]
# ## Data
#
# Threes against eights, 8 × 8 pixels in $[0, 1]$. A perturbation of radius $\varepsilon$ is measured in these units.

# %%
digits = gflow.datasets.digits(positive=3, negative=8)
digits = digits.take(range(30 if small else 100))
print(f"{len(digits)} examples of {digits.x.shape[1]} pixels, {int((digits.y > 0).sum())} threes")

# %% [markdown]
# ## A problem is a network, a data set, a loss and a perturbation
#
# Here a deep linear network of degree 2 under the fast gradient method in $\ell_2$. It is chosen because its limit is
# known: the product of its layers ends in the max-margin direction, which `gflow.max_margin` computes by convex
# optimisation, without any network. So the flow can be held against an independent answer.

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
# `integrate` follows $\dot\theta = -\nabla \sum_i \ell(q_i)$ with error control until the first of the targets in
# `Until` is reached.

# %%
trajectory = gflow.integrate(problem, start, until=gflow.Until(log_loss=-20.0))
print(trajectory)

# %% [markdown]
# A trajectory can be read at any time, loss or norm; it is integrated again from the nearest saved point, so the answer
# is as accurate as the run.


# %%
def distance_to_reference(params):
    predictor = np.asarray(network.predictor(params))
    return np.linalg.norm(predictor / np.linalg.norm(predictor) - reference.direction)


print("log loss   distance of the predictor to the max-margin direction")
for log_loss in (0.0, -5.0, -10.0, -15.0, -20.0):
    print(f"{log_loss:8.0f}   {distance_to_reference(trajectory.at(log_loss=log_loss)):.4f}")

# %% [markdown]
# A loss of $e^{-20}$ is far below what training reaches, and the direction is still visibly away from where it goes:
# margins move like $1/\log t$. Waiting does not show the limit.
#
# ## The limit
#
# `find_limit` goes the rest of the way: the flow until its loss is $e^{-1000}$, then Newton's method on the KKT system.

# %%
limit = gflow.find_limit(problem, trajectory)
print(limit)
print(
    f"distance of its predictor to the max-margin direction: {distance_to_reference(limit.direction):.1e}"
)
print(
    f"margin {limit.margin:.12f}, of the balanced network with the largest margin "
    f"{gflow.measures.balanced_margin(reference.margin, 2):.12f}"
)

# %%
flow = limit.trajectory
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
report.plot_loss(trajectory, axes[0])
report.plot_layer_alignment(trajectory, axes[1])
report.plot_margins(flow, axes[2], against="log_loss", limit=limit.margin)
plt.show()

# %% [markdown]
# Theory predicts a loss that falls like $1/t$, up to powers of $\log t$, layers that align, and a margin that rises to
# that of the limit (Ji & Telgarsky 2019, Lyu & Zhu 2022). Seen: a straight line of slope $-1$; layers that are aligned
# before the first decade of time is over; and the adversarial margin, with the smoothed one below it, that runs into the
# dotted line of the limit. The last panel is drawn against $-\log$ loss, which grows like $\log t$: at its right edge
# the time is $e^{1000}$.
#
# ## The certificate: what the numbers mean

# %%
certificate = limit.certificate
print(certificate)

# %% [markdown]
# - `normalized margin` is $\min_i q_i(u)$ at norm 1, under the attack in training; `clean` is the margin without an
#   attack, `strong` the smallest that projected gradient descent with restarts finds in the same ball. Strong and
#   normalized margin agree: the training attack is as good as any here, and nothing is masked.
# - `stationarity` is $|u - \sum_i\lambda_i\nabla q_i(u)|$ with the best multipliers $\lambda\ge0$, and `complementarity`
#   says whether only the smallest margins push. Both are 0 to rounding: this is a KKT point.
# - The numbers called smoothed, `with the flow's multipliers` and $(\epsilon,\delta)$ depend on the norm of the point,
#   which is 1 here: they judge points on the way, not a limit.
# - `support` counts the examples with a multiplier. They alone decide where the flow ends.
# - The verdict of the limit, *maximum within a family*, is of second order: no direction raises the margin, and some keep
#   it, since the hidden layer may be rotated without changing the network.
# - `basin` says whose limit this is: *confirmed* means that the flow from this start came within 0.015 of it and met
#   no saddle on the way.
#
# The certificate is computed from the point alone, so it can be had for any point, such as the end of the first run:

# %%
before = gflow.certify(problem, trajectory.params)
print(
    f"at a loss of e^-20: stationarity {before.stationarity:.1e}, margin {before.normalized_margin:.6f}"
)
print(
    f"at the limit:       stationarity {certificate.stationarity:.1e}, margin {certificate.normalized_margin:.6f}"
)

# %% [markdown]
# ## Keep it
#
# A trajectory goes to one file with its settings and its problem, and comes back ready to be read.

# %%
path = trajectory.save("trajectory.npz")
print(gflow.load(path))
path.unlink()
