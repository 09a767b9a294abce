"""A parameter led to its last value: along a branch to its end, and to where a branch turns."""

import itertools
import math

import pytest

from gflow.limit.continuation import continued
from gflow.limit.settings import ContinuationSettings


def steps(last=1e-8, **others):
    given = {"first_factor": 0.5, "least_factor": 1e-3, "last_factor": 0.99, "exponent": 1.5}
    return ContinuationSettings(last=last, **given | others)


def newton(function, derivative, most=8):
    """Newton's method in one variable, and the values of the parameter that it was asked for."""
    asked = []

    def solve(x, parameter):
        asked.append(parameter)
        for iteration in range(most):
            if abs(function(x, parameter)) < 1e-13:
                return x, iteration <= 4
            slope = derivative(x, parameter)
            if slope == 0 or abs(x) > 1e3:
                break
            x -= function(x, parameter) / slope
        return None, False

    return solve, asked


def test_a_branch_is_followed_to_its_end():
    # x exp(x) = 1 + t: the branch ends at Lambert's W(1).
    solve, asked = newton(
        lambda x, t: x * math.exp(x) - 1 - t, lambda x, t: (1 + x) * math.exp(x), most=12
    )
    start, _ = solve(0.5, 1.0)
    asked.clear()
    x, last = continued(solve, start, 1.0, steps())
    assert last == asked[-1] == 1e-8
    assert x == pytest.approx(0.5671432904097838 + 1e-8 / (1.5671432904097838 * math.exp(x)))
    # Where solutions are easy to find, every factor is smaller than the one before.
    factors = [after / before for before, after in itertools.pairwise([1.0, *asked])]
    # The last one ends at the last value.
    assert all(after < before for before, after in itertools.pairwise(factors[:-1]))
    assert len(asked) < 8


def test_where_the_branch_turns_it_ends():
    # x^2 = t - 1/4 turns at t = 1/4.
    solve, asked = newton(lambda x, t: x * x - t + 0.25, lambda x, t: 2 * x, most=30)
    x, last = continued(solve, math.sqrt(0.75), 1.0, steps())
    assert 0.25 <= last < 0.25 / 0.98
    assert x == pytest.approx(math.sqrt(last - 0.25), abs=1e-6)
    assert min(asked) < 0.25


def test_a_parameter_falls_by_no_more_than_allowed_and_may_be_at_its_end():
    solve, asked = newton(lambda x, t: x - t, lambda x, t: 1.0)
    _, last = continued(solve, 1.0, 1.0, steps(least_factor=0.1))
    assert last == 1e-8
    falls = [after / before for before, after in itertools.pairwise([1.0, *asked])]
    assert min(falls) >= 0.1 * (1 - 1e-15)
    asked.clear()
    assert continued(solve, 3.0, 1e-9, steps()) == (3.0, 1e-9) and not asked
