"""Docstrings are plain text with code between single backticks; here they become reStructuredText.

- A block that is indented after an empty line is shown as it stands.
- `code` stays code, and names of the package become links.
- Signs that mean something to reStructuredText, as in |theta|, stay signs.
"""

import re
from typing import Any

from sphinx.application import Sphinx

_PARTS = re.compile(r"``[^`]+``|`(?P<code>[^`]+)`|(?P<sign>\||\*(?!\w[^*]*\w\*|\*))")
_PUBLIC = re.compile(r"gflow(\.\w+)+")


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    parts, text = [], []
    for display, line in _marked(lines):
        if display:
            parts += [_PARTS.sub(_escaped, "\n".join(text)), line]
            text = []
        else:
            text.append(line)
    parts.append(_PARTS.sub(_escaped, "\n".join(text)))
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
            found += [(True, " " * above + "::"), (True, "")]
        if inside is None:
            above = indent
        found.append((inside is not None, line))
        empty = False
    return found


def _escaped(match: re.Match[str]) -> str:
    code = match["code"]
    if code is None:
        return "\\" + match[0] if match["sign"] else match[0]
    if _PUBLIC.fullmatch(code):
        return f":py:obj:`{code}`"
    return f"``{code}``"


def _process(app: Sphinx, kind: str, name: str, what: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    # Before napoleon, which reads sections such as `Args:`.
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
