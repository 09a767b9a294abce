"""Whether what an example prints is what a page says it prints, but for rounding."""

import re
from itertools import zip_longest

import pytest

NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")

# Rounding, and the number of steps, depend on the versions and on the processor. A step may make an
# error of 1e-8, and what is zero but for rounding is as likely 1e-16 as 1e-17.
_RELATIVE, _ZERO = 2e-3, 1e-12
_COUNT = 0.1


def same(told: str, found: str) -> bool:
    """Whether two lines have the same words, and numbers that agree but for rounding."""
    pairs = zip_longest(NUMBER.findall(told), NUMBER.findall(found))
    words = [" ".join(NUMBER.sub("#", line).split()) for line in (told, found)]
    return words[0] == words[1] and all(close(*pair) for pair in pairs)


def close(told: str, found: str) -> bool:
    relative = _COUNT if told.isdigit() else _RELATIVE
    # The last digit that is printed may be rounded either way.
    return float(told) == pytest.approx(float(found), rel=relative + last_digit(told), abs=_ZERO)


def last_digit(number: str) -> float:
    """One unit of the last digit, relative to the number."""
    digits = re.sub(r"e.*|[+\-.]", "", number).lstrip("0")
    return 1 / int(digits) if digits else 0.0
