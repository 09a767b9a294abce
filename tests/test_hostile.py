"""Whatever the input: no wrong answer is called right, nothing hangs, and no undocumented error.

The long form, 2000 problems with its figures, is `benchmarks/hostile.py`.
"""

import _hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def cases(network):
    return st.builds(
        _hostile.Case,
        network=st.just(network),
        data=st.sampled_from(_hostile.DATA),
        loss=st.sampled_from(tuple(_hostile.LOSSES)),
        log10_scale=st.one_of(st.just(0.0), st.floats(-12, 12)),
        log10_start=st.one_of(st.just(0.0), st.floats(-10, 10)),
        radius=st.one_of(st.just(0.0), st.floats(0, 2)),
        seed=st.integers(0, 999),
    )


@pytest.mark.slow
@pytest.mark.parametrize("network", ["linear", "squared"])
@settings(max_examples=30)
@given(data=st.data())
def test_no_limit_is_called_right_that_is_wrong(network, data):
    case = data.draw(cases(network))
    assert _hostile.judged_limit(case, max_steps=500).fault is None


@pytest.mark.slow
@settings(max_examples=30)
@given(case=cases("squared"))
def test_no_target_is_called_reached_that_is_not(case):
    assert _hostile.judged_flow(case, max_steps=2000).fault is None


@settings(max_examples=60)
@given(case=cases("linear"))
def test_no_reference_is_called_solved_that_is_not(case):
    assert _hostile.judged_reference(case).fault is None
