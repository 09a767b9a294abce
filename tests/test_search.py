"""The loop of a search, its steps off saddles and its caps, without a network to train.

A toy refiner of a few lines finds what its script says, one KKT point after the other.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import gflow
from gflow import losses, networks
from gflow._layout import Layout
from gflow.deadline import Deadline
from gflow.kkt.curvature import Curvature
from gflow.kkt.point import KKTPoint
from gflow.kkt.system import KKTSystem
from gflow.limit import CirclingSettings, KinkSettings, SaddleSettings
from gflow.limit.approach import circles
from gflow.limit.leaving import circling_beside, colder_on_return, pushed_off
from gflow.limit.options import check_options
from gflow.limit.search import Refiner, Search, run
from gflow.limit.search_settings import DEFAULT
from gflow.limit.state import Cap, Found, Start, begun
from gflow.limit.verdict import DEPENDS
from gflow.results import RESULTS, name_of

SIZE = 3
NETWORK = networks.linear(SIZE)
SIGNS = np.array([1, -1, 1])
# Each example is an axis with its label's sign: the limit is along (1, 1, 1).
DATA = gflow.Dataset(SIGNS[:, None] * np.eye(SIZE), SIGNS)
PROBLEM = gflow.Problem(NETWORK, DATA, loss=losses.exponential())
LAYOUT = Layout.of(NETWORK.init(0))
UNIT = np.ones(SIZE) / math.sqrt(SIZE)


def search_of(**changes: Any) -> Search:
    fixed = Search(
        problem=PROBLEM,
        layout=LAYOUT,
        has_kinks=False,
        flow_options={"tolerance": 1e-5, "progress": False},
        max_steps=100,
        tolerance=1e-8,
        smoothing=0.02,
        cap_logits=1e3,
        cap_log_kappa=-math.inf,
        escape=True,
        max_rounds=16,
        deadline=Deadline(math.inf),
        settings=DEFAULT,
    )
    return dataclasses.replace(fixed, **changes)


def curvature_of(*values: float, undecided=()) -> Curvature:
    """Of these eigenvalues, along the axes."""
    vectors = np.eye(SIZE)[:, : len(values)]
    return Curvature(np.array(values), vectors, True, 1e-7, undecided=undecided)


CURVATURES = {
    "saddle": curvature_of(-1.0, 0.5),
    "maximum": curvature_of(0.5, 1.0),
    "open": curvature_of(-1.0, undecided=((0, 1),)),
}


def kkt_point() -> KKTPoint:
    theta, empty = UNIT * math.sqrt(SIZE), np.zeros((SIZE, SIZE))
    at = KKTSystem(np.zeros(SIZE), np.ones(SIZE), empty, empty, empty)
    active = np.ones(SIZE, bool)
    return KKTPoint(theta, np.ones(SIZE), active, 1e-15, True, 1, at)


@dataclasses.dataclass(frozen=True)
class Toy(Refiner):
    """Finds what the script says: "saddle", "maximum", "open", or "" for nothing."""

    search: Search
    script: tuple[str, ...]
    calls: list[str] = dataclasses.field(default_factory=list)

    def approach(self, state):
        self.calls.append("approach")
        return state

    def refine(self, state):
        self.calls.append("refine")
        values = {"num_steps": 1, "stationarity": 0.0, "margin": 1.0, "seconds": 0.0}
        state = state.moved("newton", UNIT, **values)
        if not self.script[len(state.stages) - 1]:
            return dataclasses.replace(state, found=None)
        return dataclasses.replace(state, found=Found(kkt_point()))

    def retry(self, state):
        self.calls.append("retry")
        if state.failures == 2:
            return state.ended(RESULTS.not_polished)
        return dataclasses.replace(state, failures=state.failures + 1)

    def curvature(self, state, point):
        self.calls.append("judge")
        return CURVATURES[self.script[len(state.stages) - 1]]

    def beside(self, point, direction):
        raise AssertionError("there are no neutral directions")

    def leave(self, state):
        self.calls.append("leave")
        visit = dataclasses.replace(state.visits[-1], departure=1.0)
        visits = (*state.visits[:-1], visit)
        return dataclasses.replace(state, found=None, left=state.found, visits=visits, failures=0)


def started(trajectory=None):
    return begun(Start(UNIT, 0.0, trajectory), 1e3, -math.inf, 1e-3)


CASES = {
    "maximum": (("maximum",), "successful", "strict maximum", 1),
    "saddles": (("saddle", "saddle", "maximum"), "successful", "strict maximum", 3),
    "retries": (("", "", "maximum"), "successful", "strict maximum", 1),
    "failures": (("", "", ""), "not_polished", "unknown", 0),
    "lost": (("saddle", "", "", ""), "not_polished", "unknown", 1),
    "open": (("open",), "degenerate", DEPENDS, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loop_ends_where_nothing_leaves_or_nothing_is_found(case):
    script, result, verdict, visits = CASES[case]
    toy, start = Toy(search_of(), script), started()
    end = run(toy, start)
    assert name_of(end.result) == result and end.verdict == verdict
    assert len(end.visits) == visits and len(end.stages) == len(script)
    # The states are frozen: the first one is what it was.
    assert start.result is None and start.stages == ()
    # A second run from an end does nothing.
    count = len(toy.calls)
    assert run(toy, end) is end and len(toy.calls) == count


def test_each_saddle_is_approached_refined_judged_and_left():
    toy = Toy(search_of(), ("saddle", "", "maximum"))
    run(toy, started())
    expected = "approach refine judge leave approach refine retry approach refine judge"
    assert toy.calls == expected.split()


@pytest.mark.parametrize(
    ("options", "rounds"), [({"escape": False}, 1), ({"max_rounds": 1}, 1), ({"max_rounds": 3}, 3)]
)
def test_saddles_are_left_as_often_as_is_allowed(options, rounds):
    end = run(Toy(search_of(**options), ("saddle",) * 5), started())
    assert name_of(end.result) == end.verdict == "saddle"
    assert len(end.visits) == rounds and end.found is not None


@pytest.fixture(scope="module")
def trajectory():
    problem = gflow.Problem(NETWORK, PROBLEM.dataset, loss=losses.logistic())
    return gflow.integrate(problem, NETWORK.init(0), until=gflow.Until(log_loss=0.0))


@pytest.mark.parametrize("name", ["approach", "refine", "retry", "curvature", "leave"])
def test_an_interrupt_keeps_the_state_before_the_step(name, trajectory):
    class Interrupted(Toy):
        pass

    def interrupt(*_):
        raise KeyboardInterrupt

    setattr(Interrupted, name, interrupt)
    script = ("", "maximum") if name == "retry" else ("saddle", "maximum")
    end = run(Interrupted(search_of(), script), started(trajectory))
    assert name_of(end.result) == "interrupted" and end.final
    assert len(end.stages) == (0 if name in ("approach", "refine") else 1)
    # With nothing to return the interrupt is passed on.
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(search_of(), script), started())


def at_saddle(offset):
    """A state at a saddle, where the flow arrived by this offset along two unstable directions."""
    found = Found(kkt_point(), curvature_of(-0.5, -0.2, 1.0), "saddle")
    state = run(Toy(search_of(escape=False), ("saddle",)), started())
    arrived = dataclasses.replace(state.flow, vector=UNIT + np.array([*offset, 0.0]), log_kappa=10)
    return dataclasses.replace(state, found=found, flow=arrived, result=None)


def test_a_saddle_is_left_as_the_linear_flow_leaves_it():
    offset, length, degree = np.array([1e-6, -1e-3]), 1e-4, 1
    state = pushed_off(search_of(), at_saddle(offset), length)
    visit = state.visits[-1]
    grown = offset * np.exp(np.array([0.5, 0.2]) * (visit.departure - 10) / degree)
    push = length * np.array([*grown, 0.0]) / np.linalg.norm(grown)
    expected = (UNIT + push) / np.linalg.norm(UNIT + push)
    np.testing.assert_allclose(state.direction, expected, atol=1e-15)
    np.testing.assert_allclose(state.flow.vector, expected, atol=1e-15)
    assert state.flow.log_kappa == visit.departure == 10  # it was farther away already
    far = pushed_off(search_of(), at_saddle(1e-3 * offset), 0.05)
    # The smaller offset grows faster, and is the first to reach the length.
    assert far.visits[-1].departure == pytest.approx(10 + math.log(0.05 / 1e-9) / 0.5)
    assert far.found is None and far.left is not None


@pytest.mark.parametrize(
    ("size", "rounding", "error"), [(1e-2, False, False), (1e-5, False, True), (0.0, True, True)]
)
def test_what_rounding_or_errors_decide_is_told(size, rounding, error):
    state = at_saddle((size, 0.5 * size))
    aside = dataclasses.replace(state.flow, vector=state.flow.vector + 1e-4 * np.eye(SIZE)[2])
    state = pushed_off(search_of(), dataclasses.replace(state, flow=aside), 0.05)
    assert (state.by_rounding, state.by_error) == (rounding, error)


def test_a_saddle_met_again_makes_the_cap_colder_up_to_a_bound():
    search = search_of()
    state = at_saddle((1e-6, 1e-6))
    capped = dataclasses.replace(state, cap=state.cap.reached_at(math.log(1e4), 0.1))
    assert colder_on_return(search, capped) is capped  # met for the first time
    earlier = dataclasses.replace(capped.visits[-1], departure=1.0)
    state, logits = dataclasses.replace(capped, visits=(earlier, *capped.visits)), []
    for _ in range(8):
        state = colder_on_return(search, state)
        if state.cap.reached:
            break
        logits.append(state.cap.wanted_logits)
        log_kappa = math.log(10 * state.cap.wanted_logits)
        state = dataclasses.replace(state, cap=state.cap.reached_at(log_kappa, 0.1))
    np.testing.assert_allclose(logits, [1e4, 1e5, 1e6, 1e7])
    bound = dataclasses.replace(DEFAULT, saddles=SaddleSettings(most_colder=1.0))
    state = dataclasses.replace(capped, visits=state.visits)
    assert colder_on_return(search_of(settings=bound), state) is state


# By these anything circles that is not at rest.
ANYTHING = CirclingSettings(path=1e-9, cosine=1e-9, steady=1e9, stands=1e9, fewest=1)


def test_a_run_that_circles_is_the_end_and_is_measured(trajectory):
    problem = gflow.Problem(NETWORK, DATA, loss=losses.logistic())
    cut = gflow.integrate(
        problem, NETWORK.init(0), until=gflow.Until(log_loss=-50.0), max_steps=12, throw=False
    )
    assert not cut.successful
    search = search_of(settings=dataclasses.replace(DEFAULT, circling=ANYTHING))
    end = circles(search, started(), cut)
    assert name_of(end.result) == "circling" and end.final
    (stage,) = end.stages
    half = len(cut) // 2
    assert stage.kind == "circling" and stage.margin == pytest.approx(cut.margin[half:].min())
    assert stage.log_growth == pytest.approx(cut.log_norm[-1] - cut.log_norm[half])
    # What rests does not circle, nor what is followed with rounded kinks, nor this by the defaults.
    assert circles(search, started(), trajectory).result is None
    assert circles(dataclasses.replace(search, has_kinks=True), started(), cut).result is None
    assert circles(search_of(), started(), cut).result is None


def test_a_saddle_that_is_left_in_spirals_is_tried_for_circling():
    problem = gflow.Problem(NETWORK, DATA, loss=losses.logistic())
    options = {"tolerance": 1e-5}
    search = search_of(problem=problem, flow_options=options, max_steps=12)
    state = at_saddle((1e-6, 1e-6))
    assert circling_beside(search, state) is state  # its eigenvalues are real
    spirals = dataclasses.replace(state.found.curvature, frequencies=np.array([0.3, 0.3, 0.0]))
    state = dataclasses.replace(state, found=Found(kkt_point(), spirals, "saddle"))
    left = circling_beside(search, state)
    assert left.result is None and [stage.kind for stage in left.stages[1:]] == ["flow"]
    # What follows goes on from where the flow stopped before.
    assert left.flow is state.flow and left.cap is state.cap
    np.testing.assert_array_equal(left.direction, state.direction)
    far = CirclingSettings(push=0.9, logits=1e6, most_steps=5)
    settings = dataclasses.replace(DEFAULT, circling=far)
    short = circling_beside(dataclasses.replace(search, settings=settings), state)
    assert short.stages[1].num_steps == 5


def test_a_cap_keeps_the_logits_of_the_first():
    cap = Cap(1e3, 5.0, least_log_kappa=2.0)
    assert not cap.known and not cap.reached
    first = cap.reached_at(math.log(2e3), 0.5)
    assert first.known and first.logits == pytest.approx(1e3) == first.first_logits
    second = first.colder(10.0)
    assert second.wanted_logits == pytest.approx(1e4) and second.known and not second.reached
    assert second.wanted_log_kappa == -math.inf and second.log_kappa == first.log_kappa
    assert second.reached_at(math.log(2e4), 0.5).first_logits == first.logits


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 2.5, "2000", None, ()])
def test_settings_that_are_no_positive_numbers_are_refused(value, own_words):
    with pytest.raises(ValueError, match=r"KinkSettings\(most_caps="):
        KinkSettings(most_caps=value)


def test_settings_of_another_kind_are_refused_by_name(own_words):
    with pytest.raises(TypeError, match=r"LimitSettings\(kinks=3\)`: give a `gflow.limit.Kink"):
        gflow.LimitSettings(kinks=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"LimitSettings\(flow=KinkS.*gflow.limit.FlowSettings"):
        gflow.LimitSettings(flow=KinkSettings())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"find_limit\(settings=\{\}\)"):
        check_options(settings={})


def test_settings_compare_equal_when_rebuilt():
    assert gflow.LimitSettings() == DEFAULT and hash(gflow.LimitSettings()) == hash(DEFAULT)
    assert gflow.LimitSettings(kinks=KinkSettings(most_caps=3)) != DEFAULT
