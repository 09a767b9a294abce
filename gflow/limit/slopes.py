"""A second search at kinks, where the first was held up by the derivative of a ReLU^2.

With the total gradient the margins are differentiated through the attack, whose direction is that
of `grad_x f`. In that gradient each ReLU^2 appears by its derivative, `2 max(a, 0)`, so that the
margins have kinks where a is 0 (`gflow.kkt.switches.with_slope_switches`), and the flow may slide
along them or end there. Many flows never meet one, so the first search treats the problem as
smooth. If it is held up, a search at kinks goes on from there with these kinks named
(`gflow.limit.kinked`).
"""

from dataclasses import replace

from gflow.kkt.certificate import Certificate
from gflow.kkt.switches import with_slope_switches
from gflow.limit.ending import limit_of
from gflow.limit.kinked import begun_anew, search_at_kinks
from gflow.limit.result import Limit
from gflow.limit.search import Search
from gflow.limit.state import State
from gflow.results import name_of

# Results of a search that may have been held up at such a kink. "circling" is one of them: with the
# total gradient the margin rises along the flow, so that it cannot circle, and points that seem to
# do so go to and fro over kinks.
_STUCK = ("chattering", "step_underflow", "not_polished", "circling", "step_budget_spent")


def limit_or_more(
    search: Search, state: State, smoothing: float, certificate: Certificate | None = None
) -> Limit:
    """The limit of a search that has ended; if it was held up, that of the search at kinks.

    Args:
        search, state, smoothing, certificate: see `limit_of`.
    """
    assert state.result is not None
    large = search.layout.size > search.settings.refine.sizes.at_kinks
    if large or name_of(state.result) not in _STUCK or not search.may_name_slope_kinks:
        return limit_of(search, state, smoothing, certificate)
    again = replace(search, problem=with_slope_switches(search.problem), has_kinks=True)
    limit = limit_of(again, *search_at_kinks(again, _taken_up(search, state)))
    return replace(limit, problem=search.problem)


def _taken_up(search: Search, state: State) -> State:
    """The state of a search that was held up, as the first one of the next search; at its cap, if
    it had reached that.
    """
    state = replace(state, direction=state.flow.vector, final=False, by_floor=False)
    return replace(begun_anew(search, state), cap=replace(state.cap, reached=state.cap.known))
