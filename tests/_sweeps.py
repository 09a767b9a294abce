"""The sweep that tests run, also in processes of their own: a linear predictor under FGM."""

import gflow
from gflow import losses, networks, perturbations

DATA = gflow.datasets.gaussian(6, 3, seed=0)
NETWORK = networks.linear(3)
SETTINGS = {"radius": [0.0, 0.1, 0.2], "seed": range(2)}


def make(radius, seed):
    attack = perturbations.fgm(radius)
    problem = gflow.Problem(NETWORK, DATA, perturbation=attack, loss=losses.exponential())
    return problem, NETWORK.init(seed)
