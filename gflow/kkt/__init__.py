"""The KKT system of the adversarial max-margin problem: points, multipliers, second order."""
