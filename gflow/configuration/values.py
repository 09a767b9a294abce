"""Kinds of values that the fields of a configuration hold, and what every table has."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

ONE, MANY = "<one>", "<many>"
"""What Pydantic's locations call the two forms of a field that takes a value or a list of them."""

_Value = TypeVar("_Value")


def _form(value: Any) -> str:
    return MANY if isinstance(value, list) else ONE


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("the values must differ")
    return values


def _ball_order(order: float) -> float:
    if order not in (1.0, 2.0, float("inf")):
        raise ValueError("projections exist for 1, 2 and inf")
    return order


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# JAX and NumPy make their generators of 64 bits.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Far larger than any that was ever trained, and small enough to be compiled.
MOST_LAYERS = 100
MOST_STEPS = 10_000
_MOST_WINDOW = 10_000
MOST_CASES = 1000
# A value, or a list of distinct ones: a run for each.
OneOrMany = Annotated[
    Annotated[_Value, Tag(ONE)]
    | Annotated[
        list[_Value],
        Field(min_length=1, max_length=MOST_CASES),
        AfterValidator(_distinct),
        Tag(MANY),
    ],
    Discriminator(_form),
]
Seeds = OneOrMany[Seed]
Radius = OneOrMany[NotNegative]
Widths = Annotated[list[Count], Field(max_length=MOST_LAYERS)]
Window = Annotated[int, Field(ge=1, le=_MOST_WINDOW)]
Tolerance = Annotated[float, Field(ge=1e-14, le=0.1)]
Power = Annotated[float, Field(ge=1, le=100)]
Digit = Annotated[int, Field(ge=0, le=9)]
# TOML has no paths, only strings.
FilePath = Annotated[Path, Field(strict=False)]
# TOML writes infinity as `inf`.
Order = Annotated[float, Field(ge=1, allow_inf_nan=True)]
BallOrder = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_ball_order)]
Name = Annotated[str, Field(min_length=1, max_length=60)]


class Table(BaseModel):
    """One table of the configuration: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
