"""`find_limits`: the limits of many flows."""

from collections.abc import Callable, Sequence
from typing import Any

from gflow._signatures import named
from gflow._typing import Params
from gflow.deadline import Deadline
from gflow.limit import Limit, LimitFailed, LimitSettings, find_limit
from gflow.limit.search_settings import DEFAULT
from gflow.problem import Problem


@named()
def find_limits(
    problems: Sequence[Problem],
    starts: Sequence[Params],
    *,
    tolerance: float = 1e-8,
    cap_logits: float = 1e3,
    flow_tolerance: float = 1e-5,
    smoothing: float = 0.02,
    escape: bool = True,
    max_rounds: int = 16,
    max_steps: int = 5000,
    max_seconds: float | None = None,
    settings: LimitSettings = DEFAULT,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = False,
) -> list[Limit]:
    """The limits of `params / |params|` along many flows, in the order of the problems."""
    deadline = Deadline.after(max_seconds, "find_limits")
    limits = []
    for problem, start in zip(problems, starts, strict=True):
        limit = find_limit(
            problem,
            start,
            tolerance=tolerance,
            cap_logits=cap_logits,
            flow_tolerance=flow_tolerance,
            smoothing=smoothing,
            escape=escape,
            max_rounds=max_rounds,
            max_steps=max_steps,
            max_seconds=deadline.left(),
            settings=settings,
            throw=False,
        )
        if throw and not limit.successful:
            raise LimitFailed(limit)
        limits.append(limit)
    return limits
