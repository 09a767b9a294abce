"""Sentences for a page, in which what stands in backticks is code."""

from typing import Any


def prose(text: str) -> Any:
    """The text as HTML: escaped, and what stands in backticks as code."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    parts[1::2] = [Markup("<code>%s</code>") % part for part in parts[1::2]]
    return Markup("").join(parts)
