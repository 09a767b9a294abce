"""The limit of the flow's direction: found, judged, and how it moves with the data."""

from gflow.limit.finding import find_limit
from gflow.limit.result import Limit, LimitFailed
from gflow.limit.search_settings import (
    BasinSettings,
    CirclingSettings,
    FlowSettings,
    KinkSettings,
    LimitSettings,
    SaddleSettings,
    VerdictSettings,
)
from gflow.limit.sensitivity import data_sensitivity, radius_sensitivity
from gflow.limit.settings import RefineSettings

__all__ = [
    "BasinSettings",
    "CirclingSettings",
    "FlowSettings",
    "KinkSettings",
    "Limit",
    "LimitFailed",
    "LimitSettings",
    "RefineSettings",
    "SaddleSettings",
    "VerdictSettings",
    "data_sensitivity",
    "find_limit",
    "radius_sensitivity",
]
