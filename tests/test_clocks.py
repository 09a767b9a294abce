"""Curves against two clocks: what coincides is drawn once, and limits are lines at the edge."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import rc_context

from gflow.report.clocks import LAST_DECADE, Curve, curve, draw, merged, table
from gflow.report.style import MARKS, PALETTE, SETTINGS, STYLES, look, mark

TIME = np.linspace(0.0, 100.0, 201)
FAR = np.log10(np.maximum(TIME * np.log(10), 1.0))


def one(name, values, limit=1.0, index=0):
    return Curve(name, TIME, FAR, values, limit, look(index), mark(index))


def rising(height=1.0):
    return height * (1 - 1 / (1 + TIME))


def test_curves_that_coincide_are_one():
    shifted = rising() + 1e-3
    found = merged([one("a", rising()), one("b", rising(0.5), 0.5), one("c", shifted)])
    assert [each.name for each in found] == ["a = c", "b"]


def test_curves_of_other_limits_are_told_apart():
    found = merged([one("a", rising()), one("b", rising(), 1.5), one("c", rising(), np.nan)])
    assert [each.name for each in found] == ["a", "b", "c"]


def test_curves_are_compared_at_equal_time_however_they_were_saved():
    few = Curve("few", TIME[::10], FAR[::10], np.interp(TIME[::10], TIME, TIME), np.nan)
    assert [each.name for each in merged([one("all", TIME.copy(), np.nan), few])] == ["all = few"]


def test_what_starts_after_the_other_ended_is_another():
    late = Curve("late", TIME + 200, FAR, rising(), 1.0)
    assert len(merged([one("a", rising()), late])) == 2


@pytest.mark.parametrize("limit", [1.0, np.nan])
def test_a_run_that_rests_has_a_second_clock_of_some_width(limit):
    """Its loss does not fall, so that all its points are at one place of the second clock."""
    rests = Curve("rests", TIME + LAST_DECADE, np.full_like(TIME, 0.3), rising(), limit)
    figure = draw([rests], "margin", guide=-1.0)  # matplotlib warns of an axis without width
    low, high = figure.axes[1].get_xlim()
    assert low == 0.3 < high


@pytest.mark.parametrize("limit", [1.0, np.nan])
def test_the_second_clock_begins_where_the_first_ends(limit):
    with rc_context(SETTINGS):
        figure = draw([one("a", rising(), limit), one("b", rising(0.5), limit, 1)], "margin")
        figure.savefig(io.BytesIO(), format="svg")
    near, far = figure.axes
    for axes in figure.axes:
        assert axes.get_xlabel()
    assert near.get_ylabel() == "margin"
    x = near.lines[0].get_xdata()
    assert x[-2] <= LAST_DECADE < x[-1]
    # The second clock goes on from the last point of the first one.
    assert far.lines[0].get_xdata()[0] == pytest.approx(FAR[TIME <= LAST_DECADE][-1])
    level = [line for line in far.lines if set(line.get_ydata()) == {1.0}]
    assert bool(level) == bool(np.isfinite(limit))


def test_a_short_run_has_one_clock():
    short = Curve("a", TIME[:10], FAR[:10], rising()[:10])
    assert len(draw([short], "margin").axes) == 1


def test_a_ring_marks_where_a_run_first_comes_to_a_loss():
    log_loss = -TIME * np.log(10)
    run = SimpleNamespace(
        log1p_time=TIME * np.log(10), log_minus_log_loss=FAR * np.log(10), log_loss=log_loss
    )
    for stop, place in ((log_loss[6], TIME[6]), (log_loss[6] + 1.0, TIME[6]), (-1e9, None)):
        found = curve(run, "a", rising(), stop=stop, style=look(0))
        rings = [one for one in draw([found], "margin").axes[0].lines if len(one.get_xdata()) == 1]
        assert [float(one.get_xdata()[0]) for one in rings] == ([] if place is None else [place])
        for one in rings:
            assert one.get_ydata()[0] == pytest.approx(rising()[6])


def test_the_table_holds_every_number_and_the_limit():
    lines = table([one("a", rising(), 0.25)], "margin").splitlines()
    assert lines[0] == "run,log10_1_plus_t,log10_minus_log_loss,margin"
    assert len(lines) == 1 + len(TIME) + 1
    assert [float(part) for part in lines[5].split(",")[1:]] == pytest.approx(
        [TIME[4], FAR[4], rising()[4]]
    )
    assert lines[-1] == "a,limit,limit,0.25"


def test_looks_differ_in_more_than_colour():
    count = len(PALETTE)
    assert len(STYLES) == len(MARKS) == count
    assert len({str(style) for style in STYLES}) == len(set(MARKS)) == count
    assert look(count + 1) == look(1) and mark(count + 1) == mark(1)
