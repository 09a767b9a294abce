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
# # ReLU networks: limits, certificates, saddles and kinks
#
# *What does a limit look like where the network is not linear, and what do the words of gflow's answer mean there?*
#
# For ReLU networks the theory promises a KKT point of the margin problem, and no more: not which one, not that it is the
# best, not that it lies where everything is differentiable. Three small problems show what comes of that: a limit in the
# plane, a saddle that holds the flow on its way, and a limit at kinks under an attack that jumps. Data and start of the
# second and of the third were searched for among random ones, so that a saddle and several kinks are met; a random
# problem need not show either.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib.pyplot as plt
import numpy as np

import gflow
from gflow import losses, networks, perturbations, report

gflow.use_compilation_cache()
report.use_style()
small = bool(os.environ.get("GFLOW_SMOKE"))  # a small form, for tests

# %% [markdown]
# ## One problem, several limits
#
# Two layers of plain ReLUs on 12 points in the plane, under the $\ell_2$ fast gradient method. From each start
# `find_limit` follows the flow with slightly rounded kinks, then leads the rounding to 0, so that the answer is that of
# the ReLU network itself.

# %%
data = gflow.datasets.gaussian(12, 2, gap=0.3, seed=0)
relu = networks.mlp((2, 5, 1))
plane = gflow.Problem(
    relu, data, loss=losses.exponential(), perturbation=perturbations.fgm(0.15, order=2)
)
seeds = (0, 1) if small else (0, 1, 2, 3)
limits = {seed: gflow.find_limit(plane, relu.init(seed)) for seed in seeds}
for seed, limit in limits.items():
    print(
        f"start {seed}: {limit.verdict}, margin {limit.margin:.6f}, stationarity "
        f"{limit.certificate.stationarity:.0e}, basin {limit.basin}, switches at a kink: {limit.kinks.at_kink.sum()}"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
for panel, seed in zip(axes, (0, 1), strict=True):
    report.plot_plane(plane, limits[seed].direction, panel)
    panel.set_title(f"start {seed}: margin {limits[seed].margin:.4f}")
axes[0].legend(frameon=True)
plt.show()

# %% [markdown]
# Theory predicts a KKT point and not always the same one: the margin problem of a ReLU network is not convex. Seen: the
# two starts end at different margins, each with a stationarity of rounding, and in both pictures the perturbed points of
# the support examples lie on the dashed lines.
#
# The verdict is of second order. *Maximum* and *stable* say that the flow does not leave the point, *within a family* that
# it is one of many equal ones: neurons that look alike can share their weight in any proportion. *Stable* in place of
# *maximum* is for frozen perturbations, as in training, where the flow does not climb the margin itself, and for points
# at which a neuron has died out that would grow if it pointed elsewhere. A basin that is
# *undecided* says that the point is right, but that another tolerance might have led to another one: with kinks that is
# the rule. `reproduce=True` searches again with a tighter tolerance, a colder cap and less rounding:

# %%
if not small:
    again = gflow.find_limit(plane, relu.init(0), reproduce=True)
    print(f"basin {again.basin}; other searches that ended elsewhere: {len(again.differing)}")

# %% [markdown]
# ## A saddle on the way
#
# Five neurons, four copies of each. By symmetry copies stay copies, as long as nothing disturbs them; the point where
# they end as copies is a KKT point, and a saddle. The flow is held there and leaves by what rounding and its tolerance add
# to the difference of the copies.

# %%
generator = np.random.default_rng(7)
x = generator.normal(size=(8, 4))
y = np.where(generator.random(8) < 0.5, -1, 1)
rounded = networks.mlp((4, 20, 1), smoothing=0.05)
copied = gflow.Problem(rounded, gflow.Dataset(x, y), loss=losses.exponential())
inner, outer = networks.mlp((4, 5, 1), smoothing=0.05).init(7)
start = (np.repeat(inner, 4, axis=0), np.repeat(outer, 4, axis=1))
limit = gflow.find_limit(copied, start)
print(limit)
print()
print("visited                 margin      from log kappa   to log kappa   growth")
for visit in limit.itinerary:
    print(
        f"{visit.verdict:22} {visit.margin:.6f}   {visit.arrival:14.1f}   {visit.departure:12.1f}   {visit.growth:6.3f}"
    )

# %%
flow = limit.trajectory
figure, axes = plt.subplots(figsize=(5.2, 3.4))
report.plot_margin(flow, axes, against="kappa", label="flow")
for visit in limit.itinerary:
    held = np.array(
        [visit.arrival, min(visit.departure, limit.itinerary[-1].arrival + 40)]
    ) / np.log(10)
    axes.plot(held, [visit.margin] * 2, linewidth=5, linestyle="-", label=visit.verdict)
axes.set_ylim(0.9 * limit.margin, 1.01 * limit.margin)
axes.legend()
plt.show()

# %% [markdown]
# Theory predicts that near a saddle an offset grows like $\kappa^{\text{growth}}$, so that the flow is held for a stretch
# of $\log\kappa$ that grows with the logarithm of how small the offset was. Seen: the curve is the flow that was
# integrated, and the bars are the points it visits with the stretch in which it is there; the first one is a saddle with
# a smaller margin than the last. A training run, whose $\log\kappa$ seldom exceeds 50, sees the saddle and takes it for
# the end.
#
# ## A limit at kinks, under an attack that jumps
#
# Plain ReLUs again, in three dimensions. Under FGM the direction of the attack jumps where an example passes the kink of a
# neuron, and the flow slides along such kinks: its limit holds several of them exactly.

# %%
generator = np.random.default_rng(1009)
x = generator.normal(size=(12, 3))
y = np.where(generator.random(12) < 0.5, -1.0, 1.0)
jumping = gflow.Problem(
    networks.mlp((3, 6, 1)),
    gflow.Dataset(x, y),
    loss=losses.exponential(),
    perturbation=perturbations.fgm(0.1, order=2),
)
limit = gflow.find_limit(jumping, jumping.network.init(509))
print(limit)
print()
print(limit.kinks)

# %% [markdown]
# A ReLU at its kink has no slope, but a set of them, $[0, 1]$, and the KKT conditions hold with one number of each set:
# `limit.kinks.coefficients`, between $-1$ and $1$ where a switch stands at its kink. Two margins belong to such a point.
# The *held margin* is that of the KKT system, with the switches held half-way, as the flow on its slide holds them on
# average. The *margin* is what the attack leaves at the direction itself, or next to it, where each switch is on or off.

# %%
held = limit.kinks.coefficients[limit.kinks.at_kink]
print("coefficients at the kinks:", np.round(held, 3))
print(
    f"held margin {limit.held_margin:.6f}, margin {limit.margin:.6f}: {limit.held_margin / limit.margin - 1:.1%} apart"
)

flow = limit.trajectory
figure, axes = plt.subplots(figsize=(5.2, 3.4))
report.plot_margin(flow, axes, against="log_loss", label="margin of the flow")
report.plot_smoothed_margin(flow, axes, against="log_loss", label="smoothed margin")
axes.axhline(
    limit.held_margin, color="black", linewidth=1, linestyle="--", label="held margin of the limit"
)
axes.axhline(limit.margin, color="black", linewidth=1, linestyle=":", label="margin of the limit")
axes.set(ylabel="normalized margin", ylim=(0, 1.1 * limit.held_margin))
axes.legend()
plt.show()

# %% [markdown]
# Theory predicts a sliding equilibrium (Filippov's sense): what the flow holds lies above what the attack leaves at any
# single point. Seen: the flow, followed with its kinks rounded to 2 %, runs into a margin shortly below the held one and
# well above the dotted line; with less rounding it comes closer to the dashed line.
#
# ## The certificate, again
#
# A point at kinks is certified with its coefficients. From the direction alone `certify` finds the neurons that stand at
# a kink, but where the attack jumps it has to guess on which side. Its normalized margin is that of one side, which
# rounding decides; `limit.margin` is the largest on any side.

# %%
print(gflow.certify(jumping, limit.direction, coefficients=limit.kinks.coefficients))
