"""Parts of pages that are made from the code, as Markdown in `docs/_generated`."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
from sphinx.application import Sphinx

from gflow import studies
from gflow.__main__ import cli
from gflow.commands.explaining import explanation, summary
from gflow.commands.fields import Section, kind_of, plain_fields, sections

DOCS = Path(__file__).parent.parent
FOLDER = DOCS / "_generated"

_FIRST = ("quickstart",)
_MARKS = re.compile(r"(?P<code>`[^`]+`)|(?P<option>--[a-z-]+)|(?P<mark>[\\`*_{}\[\]<>|$^~#])")
_PASSAGE = re.compile(r"^\*\*([^*\n]+?)\.\*\* (.*?)(?=^\*\*[^*\n]+?\.\*\* |^## |\Z)", re.M | re.S)
_SECTION = re.compile(r"^## \d+\. ([^\n]+)\?\n(.*?)(?=^## |\Z)", re.M | re.S)


def plain(text: str) -> str:
    """Text whose signs are no markup, but for `code` and options."""

    def written(found: re.Match[str]) -> str:
        option, mark = found["option"], found["mark"]
        return f"`{option}`" if option else f"\\{mark}" if mark else found["code"]

    return _MARKS.sub(written, text)


def tutorials() -> str:
    """The notebooks that there are, the first ones first."""
    names = sorted(path.stem for path in (DOCS / "notebooks").glob("*.ipynb"))
    names.sort(key=lambda name: (name not in _FIRST, name))
    lines = [f"/notebooks/{name}" for name in names]
    return "\n".join(["```{toctree}", ":maxdepth: 1", *lines, "```"])


def study_list() -> str:
    """Every study: claim, what holds instead, setting, full form and source."""
    lines = []
    for name in studies.NAMES:
        study = studies.find(name)
        lines += [f"## {plain(study.title)}", "", f"`gflow study {name}`", ""]
        lines += [plain(study.claim), ""]
        if study.correction:
            lines += [f"*What holds instead.* {plain(study.correction)}", ""]
        lines += [f"*Setting.* {plain(study.setting)}", ""]
        if study.full:
            lines += [f"*Full form* (`gflow study {name} --full`). {plain(study.full)}", ""]
        lines += [f"*Source.* {plain(study.source)}", ""]
    return "\n".join(lines)


def commands() -> str:
    """Every command, its help and its options."""
    lines = []
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=f"gflow {name}", max_content_width=88)
        arguments = " ".join(command.collect_usage_pieces(context))
        lines += [f"## `gflow {name}`", "", "```text", f"gflow {name} {arguments}", "```", ""]
        paragraphs = (command.help or "").split("\n\n")
        lines += [plain(" ".join(paragraph.split())) + "\n" for paragraph in paragraphs]
        for option in command.get_params(context):
            record = option.get_help_record(context)
            if record is not None and record[1]:
                lines += [f"`{record[0]}`", f": {plain(' '.join(record[1].split()))}", ""]
    return "\n".join(lines)


def fields() -> str:
    """Every field of a job file."""
    return "\n".join(line for section in sections() for line in _section(section))


def _section(section: Section) -> Iterator[str]:
    yield f"### {plain(section.header) or 'Top of the file'}\n"
    yield f"{plain(section.purpose).capitalize()}.\n"
    for model in section.models:
        if len(section.models) > 1:
            yield f'**`kind = "{kind_of(model)}"`** {plain(summary(model))}\n'
        for name, info in plain_fields(model):
            yield f"`{name}`\n: {plain(explanation(info).plain)}\n"


def measured() -> Iterator[tuple[str, str]]:
    """What `benchmarks/README.md` answers by question, and its passages that begin with a name."""
    text = (DOCS.parent / "benchmarks" / "README.md").read_text()
    for name, passage in [*_SECTION.findall(text), *_PASSAGE.findall(text)]:
        moved = passage.replace("](results/", "](../../../benchmarks/results/")
        yield name.lower().replace(" ", "-"), moved


def write(app: Sphinx) -> None:
    parts = {
        "tutorials": tutorials(),
        "studies": study_list(),
        "commands": commands(),
        "fields": fields(),
        **{f"measured/{name}": passage for name, passage in measured()},
    }
    (FOLDER / "measured").mkdir(parents=True, exist_ok=True)
    for name, text in parts.items():
        path = FOLDER / f"{name}.md"
        # Left alone where nothing changed, so that pages are not read again for nothing.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
