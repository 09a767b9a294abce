"""Docstrings are plain text with code between single backticks; here they become reStructuredText.

- A block that is indented after an empty line is shown as it stands.
- `code` stays code, and names such as `gflow.certify` become links.
- Signs that mean something to reStructuredText, as in |theta|, stay signs.
"""

import re
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx

_PARTS = re.compile(
    r"``[^`]+``|`(?P<code>[^`]+)`|\*\*\w[^*]*\w\*\*|(?<!\w)\*\w[^*]*\w\*|(?P<sign>[|*])"
)
_PUBLIC = re.compile(r"gflow(\.\w+)+")

_SHAPED = r"\w+\[(?:Array|ndarray), '[^']*'\]"
# In signatures: arrays by their shapes alone, defaults as numbers, and no private places.
_SHORTER = [
    (re.compile(r"jaxlib\._jax\.Array"), "Array"),
    (re.compile(r"Default\(([^()]*)\)"), r"\1"),
    (re.compile(rf"(?:{_SHAPED} \| )+float64 \| float"), "float"),
    (re.compile(rf"({_SHAPED})(?: \| {_SHAPED})+"), r"\1"),
    (re.compile(r"<gflow\.\S+ object at 0x\w+>"), "..."),
]
# Classes with more fields than this are made by gflow, not by users.
_MOST_FIELDS = 8


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    parts = []
    for display, some in groupby(_marked(lines), key=lambda marked: marked[0]):
        text = "\n".join(line for _, line in some)
        parts.append(text if display else _PARTS.sub(_escaped, text))
    return "\n".join(parts).split("\n")


def _marked(lines: list[str]) -> list[tuple[bool, str]]:
    """Each line with whether it belongs to a display, and what announces one before it."""
    found: list[tuple[bool, str]] = []
    above, inside, empty = 0, None, False
    for line in lines:
        if not line.strip():
            empty = True
            found.append((inside is not None, line))
            continue
        indent = len(line) - len(line.lstrip())
        if inside is not None and indent < inside:
            inside = None
        if inside is None and empty and indent > above:
            inside = indent
            found += [(True, " " * max(above, indent - 4) + ".. code-block:: text"), (True, "")]
        if inside is None:
            above = indent
        found.append((inside is not None, line))
        empty = False
    return found


def _escaped(match: re.Match[str]) -> str:
    code = match["code"]
    if code is None:
        return "\\" + match[0] if match["sign"] else match[0]
    code = " ".join(code.split())
    return f":py:obj:`{code}`" if _PUBLIC.fullmatch(code) else f"``{code}``"


def _docstring(
    app: Sphinx, kind: str, name: str, what: Any, options: Any, lines: list[str]
) -> None:
    if kind == "data" and what.__doc__ == type(what).__doc__:
        # Of a number or a tuple, which has no text of its own: the page says what it is.
        lines.clear()
    lines[:] = as_rst(lines)
    if kind in ("attribute", "data", "property"):
        # A comment of nothing: in a first line napoleon takes what is before a colon for a type.
        lines[:0] = ["..", ""]


def _signature(
    app: Sphinx, kind: str, name: str, what: Any, options: Any, arguments: str, returns: str
) -> tuple[str, str]:
    fields = getattr(what, "__dataclass_fields__", {}) if kind == "class" else {}
    if len(fields) > _MOST_FIELDS:
        return "", ""
    for pattern, short in _SHORTER:
        arguments, returns = (text and pattern.sub(short, text) for text in (arguments, returns))
    return arguments, returns


def setup(app: Sphinx) -> dict[str, bool]:
    # Before napoleon, which reads sections such as `Args:`.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
