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
# # A flow in the plane
#
# *What does adversarial training look like, from the first step to the limit?*
#
# With two inputs all of it can be seen: the decision boundary, where the attack moves the examples, and which examples
# push. `report.explorer` writes one page with a slider over log-time; this notebook makes it and draws four of its
# moments.

# %%
import html

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import gflow
from gflow import losses, networks, perturbations, report

gflow.use_compilation_cache()
report.use_style()

# %% [markdown]
# ## A problem in the plane
#
# Points on two sides of a line through the origin, a network of degree 3 with squared ReLUs, and the $\ell_2$ fast
# gradient method with radius 0.3. The gradient is taken through the perturbation, so that the flow climbs the adversarial
# margin (Lyu & Zhu 2022).

# %%
data = gflow.datasets.gaussian(24, 2, gap=0.4, seed=3)
network = networks.mlp((2, 6, 1), power=2)
problem = gflow.Problem(
    network,
    data,
    loss=losses.exponential(),
    perturbation=perturbations.fgm(0.3, order=2),
    gradient="total",
)
limit = gflow.find_limit(problem, network.init(1))
flow = limit.trajectory
print(limit)

# %% [markdown]
# ## Four moments
#
# `report.plot_plane` draws one point of the flow. The solid line is the boundary $f = 0$; on the dashed lines the output
# is $\pm\gamma$, the smallest adversarial margin, once that is positive. Each example has a line to its perturbed point.

# %%
moments = {
    "at the start": flow.params_at_index(0),
    "at loss 1": flow.at(log_loss=0.0),
    "at loss $e^{-20}$": flow.at(log_loss=-20.0),
    "at the limit": limit.direction,
}
figure, axes = plt.subplots(1, 4, figsize=(15, 4))
for (name, params), panel in zip(moments.items(), axes, strict=True):
    report.plot_plane(problem, params, panel)
    panel.set_title(f"{name}: margin {gflow.measures.normalized_margin(problem, params):.4f}")
axes[0].legend(loc="upper right", frameon=True)
plt.show()

# %% [markdown]
# Theory predicts that at the limit no perturbed point lies between the dashed lines, and that only those on them have
# multipliers. Seen: in the last panel the band between the lines is empty, and it touches the examples that push:

# %%
pushing = np.flatnonzero(limit.certificate.multipliers > 1e-8)
margins = np.asarray(problem.margins(limit.direction))
print("example   multiplier   margin / smallest margin")
for example in pushing:
    print(
        f"{example:7d}   {limit.certificate.multipliers[example]:10.4f}   {margins[example] / limit.margin:.12f}"
    )
others = np.delete(margins, pushing)
print(
    f"all others: no multiplier, margins from {others.min() / limit.margin:.2f} times the smallest on"
)

# %% [markdown]
# ## The page
#
# One HTML file without scripts or fonts from elsewhere, for mouse and keyboard; `#t=0.5` behind its address sets the
# slider to its middle. Reports of `gflow run` hold the same for every run on data with two inputs.

# %%
path = report.explorer(flow, "explorer.html", limit=limit)
print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
page = html.escape(path.read_text(encoding="utf-8"))
frame = f'<iframe title="A flow in the plane" width="100%" height="760" style="border:0" srcdoc="{page}"></iframe>'
display({"text/html": frame, "text/plain": "The page, shown where notebooks show HTML."}, raw=True)
path.unlink()
