"""The command line: what is refused and how, what help tells, and what a job leaves behind."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gflow import configuration as tables
from gflow.__main__ import main
from gflow.commands.explaining import example_toml, fields_text
from gflow.commands.fields import plain_fields, sections, toml_value
from gflow.commands.quick import quick
from gflow.commands.reading import UserError, read_configuration
from gflow.configuration import Configuration, labels


def read(folder: Path, text: str, *overrides: str) -> Configuration:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return read_configuration(path, overrides)


REFUSED = {
    # what is written in the file -> what the message must say
    "top field": ("sede = 1", ["`sede`", "no such field", "`seed`"]),
    "field with no likeness": ("zzz = 1", ["`zzz`", "seed", "network", "until"]),
    "table": ('[[networks]]\nkind = "mlp"', ["`networks`", "`network`"]),
    "field of a table": ("[until]\nlog_los = 3", ["`until.log_los`", "`log_loss`"]),
    "field of an array's table": (
        '[[network]]\nkind = "linear"\n[[network]]\nkind = "mlp"\nhiden = [3]',
        ["`network[1].hiden`", "`hidden`"],
    ),
    "field of another kind": (
        '[[perturbation]]\nkind = "fgm"\nradius = 0.1\nsmoothing = 0.1',
        ["`perturbation[0].smoothing`", "no such field", "radius, order"],
    ),
    "kind": ('[data]\nkind = "digit"', ["`data.kind`", "'digit'", "`digits`"]),
    "kind left out": ("[data]\npositive = 1", ["`data.kind`", "digits, mnist, gaussian"]),
    "radius left out": ('[[perturbation]]\nkind = "pgd"', ["`perturbation[0].radius`", "needed"]),
    "choice": ('loss = "hinge"', ["`loss`", "'hinge'", "'exponential' or 'logistic'"]),
    "truth for a number": ("seed = true", ["`seed` = true", "integer"]),
    "text for a number": ('[until]\nlog_loss = "low"', ["`until.log_loss` = 'low'", "number"]),
    "text in a list": (
        '[[network]]\nkind = "mlp"\nhidden = [4, "a"]',
        ["`network[0].hidden[1]` = 'a'", "integer"],
    ),
    "negative radius": (
        '[[perturbation]]\nkind = "fgm"\nradius = -0.1',
        ["`perturbation[0].radius` = -0.1", "greater than or equal to 0"],
    ),
    "NaN": ('[[perturbation]]\nkind = "fgm"\nradius = nan', ["`perturbation[0].radius` = nan"]),
    "order of PGD": (
        '[[perturbation]]\nkind = "pgd"\nradius = 0.1\norder = 3.0',
        ["`perturbation[0].order` = 3.0", "1, 2 and inf"],
    ),
    "no target": ("[until]", ["`until`", "at least one of log_loss"]),
    "no network": ("network = []", ["`network`", "at least 1"]),
    "syntax": ("seed = 1\nloss = [", ["not valid TOML"]),
    "syntax with its line": ("seed = 1\nloss == 2", ["not valid TOML", "line 2"]),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_field_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_every_wrong_field_is_told_at_once(tmp_path):
    text = 'sede = 1\nloss = "x"\n[[network]]\nkind = "mlp"\nhiden = [1]\nscale = 0.0'
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    for field in ("`sede`", "`loss`", "`network[0].hiden`", "`network[0].scale`"):
        assert field in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"seed = 1\n# caf\xe9\n"), "line 2"),
    ],
    ids=["missing", "folder", "not UTF-8"],
)
def test_an_unreadable_file_is_an_error_without_traceback(tmp_path, capsys, make, words):
    path = tmp_path / "job.toml"
    make(path)
    assert main(["run", str(path)]) == 2
    output = capsys.readouterr()
    assert words in output.err and str(path) in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--sede", "3"], "--seed"),
        (["run", "--seed", "x"], "--seed"),
        (["run", "--seed", "-1"], "--seed"),
        (["rum"], "run"),
        (["run", "--set", "until"], "KEY=VALUE"),
        (["run", "--set", "until.log_los=1"], "`until.log_los`"),
        (["report"], "FOLDER"),
    ],
)
def test_a_wrong_option_is_refused_by_name(capsys, arguments, words):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_help_explains_every_field(capsys):
    assert main(["run", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    told = 0
    for section in sections():
        assert section.header in shown
        for model in section.models:
            for name, info in plain_fields(model):
                assert info.description, f"{model.__name__}.{name} has no description"
                assert name in shown and " ".join(info.description.split()) in shown
                told += 1
    # Every field of every table: none of them hides from the walk.
    assert told >= 45


def test_help_fits_the_width():
    assert max(map(len, fields_text(width=60).splitlines())) <= 60


@pytest.mark.parametrize("arguments", [["run", "--help"], ["--version"], ["config"], ["run", "x"]])
def test_help_and_refusals_do_not_import_jax(arguments):
    code = (
        "import sys; from gflow.__main__ import main; main(sys.argv[1:]);"
        "sys.exit(sum(name in sys.modules for name in ('jax', 'sklearn', 'matplotlib', 'diffrax')))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


def test_the_example_reads_back(capsys, tmp_path):
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert read(tmp_path, text) == Configuration()
    # Every field is there, set or as a comment, with its meaning.
    for name, info in plain_fields(Configuration):
        assert f"\n{name} = " in text and info.description in text


EVERY_TABLE = Configuration(
    seed=7,
    data=tables.Mnist(path=Path("/data/mnist"), limit=100),
    network=[
        tables.Linear(),
        tables.DeepLinear(hidden=[3]),
        tables.Mlp(name='a "quoted" name\twith tab', power=1.5, bias=True),
        tables.Diagonal(depth=3, scale=0.5),
    ],
    perturbation=[
        tables.Clean(),
        tables.Fgm(radius=0.1, order=float("inf")),
        tables.Fgsm(radius=1e-9, smoothing=0.1),
        tables.Pgd(radius=0.1, order=1.0, step_size=0.01, random_start=3),
    ],
    until=tables.UntilTable(time=1e30, stationarity=0.01),
    solver=tables.SolverTable(name="dopri8", max_steps=10),
)


def test_every_table_reads_back(tmp_path):
    assert read(tmp_path, example_toml(EVERY_TABLE)) == EVERY_TABLE


@given(st.one_of(st.text(), st.floats(allow_nan=False), st.integers(), st.booleans()))
def test_values_read_back_from_toml(value):
    # Lone surrogates are no characters, and no UTF-8 file can hold them.
    if isinstance(value, str):
        value = value.encode("utf-8", "ignore").decode()
    # TOML's integers have 64 bits.
    if isinstance(value, int) and abs(value) >= 2**63:
        return
    assert tomllib.loads(f"key = {toml_value([value])}")["key"] == [value]


def test_overrides_change_single_fields(tmp_path):
    text = '[until]\nlog_loss = -5.0\n[data]\nkind = "gaussian"\nn = 10'
    found = read(tmp_path, text, "until.log_loss=-3", "loss=exponential", "data.d=7", "seed=4")
    assert found.until == tables.UntilTable(log_loss=-3)
    assert found.data == tables.Gaussian(n=10, d=7)
    assert (found.loss, found.seed) == ("exponential", 4)


def test_paths_are_relative_to_the_file(tmp_path):
    found = read(tmp_path, '[data]\nkind = "csv"\npath = "points.csv"')
    assert found.data.path == tmp_path / "points.csv"


def test_names_are_unique():
    pair = [tables.Clean(), tables.Fgm(radius=0.1), tables.Fgm(radius=0.2), tables.Clean(name="x")]
    assert labels(pair) == ["clean", "fgm 1", "fgm 2", "x"]


def test_quick_keeps_every_case():
    small = quick(Configuration())
    assert labels(small.network) == labels(Configuration().network)
    assert labels(small.perturbation) == labels(Configuration().perturbation)
    assert all(max(table.hidden) <= 4 for table in small.network)
