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
# # Deep linear networks and the path of limits
#
# *Where does adversarial training drive a linear predictor, and does the depth of the network that computes it matter?*
#
# For linear predictors the answer is known in closed form, so that every number here can be held against one that no
# network was needed for. An $\ell_p$ attack of radius $\varepsilon$ lowers the margin of a predictor $w$ by
# $\varepsilon|w|_q$ with $1/p + 1/q = 1$, and the direction that training goes to is
#
# $$\arg\max_{|w|_2 = 1}\ \min_i\, y_i\langle w, x_i\rangle - \varepsilon |w|_q$$
#
# whatever the depth (Lyu & Zhu 2022). At radius 0 that is the $\ell_2$-SVM; at the largest radius that any direction
# withstands it is the $\ell_q$-SVM.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib.pyplot as plt
import numpy as np

import gflow
from gflow import losses, measures, networks, perturbations, report

gflow.use_compilation_cache()
report.use_style()
small = bool(os.environ.get("GFLOW_SMOKE"))  # a small form, for tests

# %% [markdown]
# ## The path, by convex optimisation
#
# 40 points in 5 dimensions, whose $\ell_2$-SVM and $\ell_1$-SVM are far apart. `max_margin` solves the problem above to
# rounding; here along the radius, for three orders $p$ of the attack.

# %%
data = gflow.datasets.gaussian(40, 5, gap=1.0, seed=73)
svm = gflow.max_margin(data, radius=0.0)
shares = np.linspace(0, 0.999, 10 if small else 40)
path = {}
for order in (2.0, 4.0, np.inf):
    largest = gflow.max_margin(data, order=order).largest_feasible_radius
    found = [gflow.max_margin(data, radius=share * largest, order=order) for share in shares]
    path[order] = [np.linalg.norm(one.direction - svm.direction) for one in found]
    print(
        f"p = {order:3g}: largest radius {largest:.4f}, direction moves by up to {max(path[order]):.4f}"
    )

# %% [markdown]
# ## The flow, at two depths
#
# Networks of two and three layers under the $\ell_\infty$ attack, followed until their margins are some $e^{30}$ times
# the normalized ones. The starts are chosen so that no coordinate of the predictor changes its sign on the way: there
# the attack jumps, and the flow has a kink.

# %%
depths = (2,) if small else (2, 3)
tried = (0.0, 0.6) if small else (0.0, 0.3, 0.6, 0.9)
largest = gflow.max_margin(data, order=np.inf).largest_feasible_radius


def problem_of(depth, radius, order):
    """The radius is a number that compiled programs take as it is: many radii, one compilation."""
    return gflow.Problem(
        networks.deep_linear((5, *(4,) * (depth - 1), 1)),
        data,
        loss=losses.exponential(),
        perturbation=perturbations.fgm(radius, order=order),
    )


def predictor(network, params):
    w = np.asarray(network.predictor(params))
    return w / np.linalg.norm(w)


starts = {2: 154, 3: 262}  # seeds
flows = {}
print("depth  radius   distance to the l2-SVM   distance to the predicted direction")
for depth in depths:
    for share in tried:
        problem = problem_of(depth, share * largest, np.inf)
        start = problem.network.init(starts[depth])
        flow = gflow.integrate(
            problem, start, until=gflow.Until(log_kappa=30.0), solver=gflow.Rosenbrock()
        )
        predicted = gflow.max_margin(data, radius=share * largest, order=np.inf)
        w = predictor(problem.network, flow.direction)
        flows[depth, share] = flow, np.linalg.norm(w - svm.direction)
        error = np.linalg.norm(w - predicted.direction)
        print(f"{depth:5d}  {share * largest:.4f}   {flows[depth, share][1]:22.6f}   {error:35.1e}")

# %%
figure, axes = plt.subplots(figsize=(5.2, 3.6))
for order, moved in path.items():
    axes.plot(shares, moved, label=f"max_margin, p = {'∞' if np.isinf(order) else f'{order:g}'}")
for depth, marker in zip(depths, "ox", strict=False):
    ends = [flows[depth, share][1] for share in tried]
    axes.plot(
        tried,
        ends,
        marker,
        color="0.35",
        markersize=8,
        fillstyle="none",
        label=f"flow, depth {depth}, p = ∞",
    )
axes.set(xlabel="radius / largest radius", ylabel="distance from the l2-SVM")
axes.legend()
plt.show()

# %% [markdown]
# Theory predicts that the limits lie on the path of `max_margin` at any depth, and that an $\ell_2$ attack moves nothing,
# since it lowers the margins of all unit directions alike. Seen: the marks of the flows lie on the curve of $p=\infty$,
# and the curve of $p=2$ stays at 0.
#
# ## What the flow conserves, and how layers align
#
# Along the flow $W_{k+1}^\top W_{k+1} - W_k W_k^\top$ is constant (`measures.balancedness`). The norms grow and this
# does not, so it matters less and less: layers become alike in their singular values, each of rank one, and the left
# singular vector of one layer meets the right one of the next (Ji & Telgarsky 2019; Lyu & Zhu 2022 under attack).

# %%
depth, share = depths[-1], tried[-1]
flow = flows[depth, share][0]
early = gflow.integrate(
    problem_of(depth, share * largest, np.inf),
    flow.params_at_index(0),
    until=gflow.Until(log_kappa=12.0),
    solver=gflow.Rosenbrock(),
    tolerance=1e-9,
)
conserved = [measures.balancedness(early.params_at_index(i)) for i in (0, -1)]
for layer, (before, after) in enumerate(zip(*conserved, strict=True)):
    scale, change = np.abs(before).max(), np.abs(np.asarray(after) - before).max()
    print(
        f"layers {layer + 1} and {layer + 2}: entries up to {scale:.3f}, changed by {change:.1e} while |params| grew "
        f"by a factor of {np.exp(early.log_norm[-1] - early.log_norm[0]):.0f}"
    )
print("stable ranks at the end:", np.asarray(measures.stable_ranks(flow.direction)))
print("alignment at the end:   ", np.asarray(measures.layer_alignment(flow.direction)))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
report.plot_layer_alignment(flow, axes[0], against="kappa")
predicted = gflow.max_margin(data, radius=share * largest, order=np.inf)
report.plot_margins(
    flow, axes[1], against="kappa", limit=measures.balanced_margin(predicted.margin, depth)
)
plt.show()

# %% [markdown]
# Theory predicts alignment 1, and in the space of all weights the normalized margin $\gamma L^{-L/2}$, where $\gamma$ is
# the predictor's and $L$ the depth. Seen: the alignments go to 1, and the adversarial margin runs into the dotted line,
# which is that number, computed from the convex problem.
#
# ## The limit itself
#
# `find_limit` ends at the limit to rounding. Under an $\ell_2$ attack it is the $\ell_2$-SVM at every radius, although the
# adversarial margin there is smaller.

# %%
for radius in (0.1, 0.4):
    problem = problem_of(depth, radius, 2.0)
    limit = gflow.find_limit(problem, problem.network.init(starts[depth]))
    reference = gflow.max_margin(data, radius=radius, order=2)
    distance = np.linalg.norm(predictor(problem.network, limit.direction) - svm.direction)
    print(
        f"radius {radius}: {limit.verdict}, basin {limit.basin}, stationarity {limit.certificate.stationarity:.0e}"
    )
    print(
        f"    distance of the predictor to the l2-SVM {distance:.0e}; margin {limit.margin:.12f}, predicted "
        f"{measures.balanced_margin(reference.margin, depth):.12f}"
    )
