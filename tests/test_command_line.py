"""The command line: what is refused and how, what help tells, and what a job leaves behind."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from _oracles import LOSSES as IN_DIGITS
from hypothesis import given
from hypothesis import strategies as st

from gflow import Dataset, load, measures, networks, stiff
from gflow import configuration as tables
from gflow.__main__ import main
from gflow.commands import working
from gflow.commands.building import (
    build,
    build_columns,
    build_dataset,
    build_datasets,
    build_network,
    build_perturbation,
)
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
    "a table in place of several": (
        '[network]\nkind = "linear"',
        ["`network`: one of several tables; write `[[network]]` above it"],
    ),
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
    "tolerance too large": (
        "[solver]\ntolerance = 0.5",
        ["`solver.tolerance` = 0.5", "less than or equal to 0.1"],
    ),
    "tolerance too small": (
        "[solver]\ntolerance = 1e-15",
        ["`solver.tolerance` = 1e-15", "greater than or equal to"],
    ),
    "box of one number": (
        '[[perturbation]]\nkind = "pgd"\nradius = 0.1\nbox = [0.0]',
        ["`perturbation[0].box`", "at least 2"],
    ),
    "shape of two numbers": (
        '[[network]]\nkind = "conv"\ninput_shape = [8, 8]',
        ["`network[0].input_shape`", "at least 3"],
    ),
    "no target": ("[until]", ["`until`", "at least one of log_loss"]),
    "seed twice": ("seed = [1, 1]", ["`seed`", "differ"]),
    "negative seed in a list": ("seed = [0, -1]", ["`seed[1]` = -1", "greater than or equal"]),
    "NaN in a list": (
        '[[perturbation]]\nkind = "fgm"\nradius = [0.1, nan]',
        ["`perturbation[0].radius[1]` = nan"],
    ),
    "too many runs": (
        f"seed = {list(range(100))}",
        ["1500 runs", "at most 1000"],
    ),
    "cap of a limit": ("[limit]\ncap_logits = 1.0", ["`limit.cap_logits` = 1.0"]),
    "no network": ("network = []", ["`network`", "at least 1"]),
    "syntax": ("seed = 1\nloss = [", ["not valid TOML"]),
    "syntax with its line": ("seed = 1\nloss == 2", ["not valid TOML", "line 2"]),
}


@pytest.mark.parametrize("text", ["", "# only a remark\n", "\ufeff"])
@pytest.mark.parametrize("command", ["run", "sweep", "config"])
def test_a_file_without_a_field_is_no_job(tmp_path, capsys, command, text):
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    assert main([command, str(tmp_path / "job.toml")]) == 2
    assert "job.toml` holds no field: it is empty" in capsys.readouterr().err
    assert main([command, os.devnull]) == 2


def test_marks_and_line_ends_of_windows_are_read(tmp_path):
    plain = read(tmp_path, "seed = 3\n[until]\nlog_loss = -4.0\n")
    (tmp_path / "w.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n[until]\r\nlog_loss = -4.0\r\n")
    assert read_configuration(tmp_path / "w.toml") == plain


def test_a_name_that_is_nearly_that_of_a_file_is_told(tmp_path):
    (tmp_path / "small.toml").write_text("seed = 1")
    with pytest.raises(UserError, match=r"perhaps `.*small\.toml` is meant"):
        read_configuration(tmp_path / "smal.toml")


LEFT = {
    # files of a folder -> what `gflow report` says
    "nothing": ({}, "nothing was run there. `gflow run --output"),
    "a sweep": ({"config.toml": "", "runs/sweep.npz": ""}, "`gflow sweep --resume"),
    "a job that had not begun": ({"config.toml": "# One job of `gflow run`"}, "`gflow run "),
    "a sweep that had not begun": ({"config.toml": "# A sweep: `gflow sweep`"}, "`gflow sweep "),
    "a sweep from Python": ({"sweep.npz": ""}, "`gflow.Sweep.load("),
    "studies": ({"ledger.json": "{}"}, "of `gflow study`"),
}


@pytest.mark.parametrize(("files", "words"), LEFT.values(), ids=LEFT)
def test_a_report_of_what_was_not_finished_says_how_to_go_on(tmp_path, capsys, files, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for options in ([], ["--matrix", str(tmp_path / "m.png")]):
        assert main(["report", str(tmp_path), *options]) == 2
        error = capsys.readouterr().err
        assert "holds no results yet" in error and words in error


def test_a_folder_in_use_is_told(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("")
    script = (
        "import sys, pathlib\nfrom gflow._files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print(1, flush=True), sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        assert main(["report", str(tmp_path)]) == 2
        other.communicate("")
    assert "a run is writing into it now" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_a_report_of_no_folder(tmp_path, capsys, what):
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("")
    assert main(["report", str(place)]) == 2
    words = "is a file, not a folder" if what == "a file" else "is not there"
    assert words in capsys.readouterr().err


def test_each_command_names_the_other_where_it_has_to_go_on(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("seed = 1")
    (tmp_path / "results.json").write_text("{}")
    assert main(["sweep", "--resume", str(tmp_path)]) == 2
    assert "holds a job, no sweep: `gflow run --resume" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert main(["run", "--resume", str(tmp_path)]) == 2
    assert "holds a sweep, no job: `gflow sweep --resume" in capsys.readouterr().err


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["config"], ["run", "--help"], ["study", "--list"]])
def test_a_full_disk_behind_the_output_is_told_in_a_sentence(arguments):
    command = [sys.executable, "-m", "gflow", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "gflow: the output cannot be written: No space left on device.\n"


@pytest.mark.slow
def test_a_warning_is_told_in_a_sentence(tmp_path, capsys):
    (tmp_path / "job.toml").write_text(
        "[[network]]\nkind = 'linear'\n[[perturbation]]\nkind = 'fgm'\nradius = 200.0\n"
        "[limit]\nenabled = false\n[until]\nlog_loss = 0.0\n[data]\nkind = 'digits'\nlimit = 10\n"
    )
    command = [sys.executable, "-m", "gflow", "run", "job.toml", "--no-report"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if "radius 200" in line]
    assert [line.startswith("gflow: warning: `Problem(...)`:") for line in told] == [True]
    assert "UserWarning" not in done.stderr and "__main__" not in done.stderr
    # No flow came to its loss, so that there is no margin to draw.
    figure = tmp_path / "m.png"
    assert main(["report", str(tmp_path / "gflow-run"), "--matrix", str(figure)]) == 2
    assert "no margin to draw" in capsys.readouterr().err
    assert not figure.exists()


def test_the_example_reads_back(capsys, tmp_path):
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert read(tmp_path, text) == Configuration()
    # Every field is there, set or as a comment, with its meaning.
    for name, info in plain_fields(Configuration):
        assert f"\n{name} = " in text and info.description in text


EVERY_TABLE = Configuration(
    seed=[7, 8],
    max_seconds=5.5,
    data=tables.Mnist(path=Path("/data/mnist"), limit=100),
    network=[
        tables.Linear(),
        tables.DeepLinear(hidden=[3]),
        tables.Mlp(name='a "quoted" name\twith tab', power=1.5, bias=True),
        tables.Diagonal(depth=3, scale=0.5),
        tables.Conv(input_shape=[1, 2, 2], channels=[2, 3], size=2, pool="max", pool_size=1),
        tables.Conv(channels=[2], padding="VALID", size=1, stride=2, hidden=[4], power=2.0),
    ],
    perturbation=[
        tables.Clean(),
        tables.Fgm(radius=[0.0, 0.1], order=float("inf")),
        tables.Fgsm(radius=1e-9, smoothing=0.1),
        tables.Pgd(radius=0.1, order=1.0, step_size=0.01, random_start=3, box=[-0.5, 1.5]),
    ],
    until=tables.UntilTable(time=1e30, stationarity=0.01),
    solver=tables.SolverTable(name="kvaerno5", max_steps=10, rtol_direction=1e-6, kappa_cap=1e4),
    limit=tables.LimitTable(enabled=False, reproduce=True, max_seconds=3.0),
)


@pytest.mark.parametrize(
    ("union", "used"),
    [(tables.Network, EVERY_TABLE.network), (tables.Perturbation, EVERY_TABLE.perturbation)],
    ids=["network", "perturbation"],
)
def test_every_kind_is_in_the_table_of_this_file(union, used):
    kinds = get_args(get_args(union)[0])
    assert set(kinds) == {type(table) for table in used}, "A new kind has a row in EVERY_TABLE."
    assert all(getattr(tables, kind.__name__) is kind for kind in kinds)


def choices(table, field):
    return set(get_args(table.model_fields[field].annotation))


def test_every_loss_and_solver_of_gflow_can_be_asked_for():
    assert choices(Configuration, "loss") == IN_DIGITS.keys()
    names = choices(tables.SolverTable, "name")
    solvers = [working._solver(name) for name in names - {"automatic"}]
    own = {type(make()) for make in stiff.SOLVERS.values()}
    assert own <= {type(solver) for solver in solvers}


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


def test_lists_stand_for_as_many_runs():
    found = Configuration(
        seed=[3, 5],
        network=[tables.Linear(), tables.Diagonal()],
        perturbation=[tables.Clean(), tables.Fgm(name="l2", radius=[0.0, 0.05, 0.1])],
    )
    assert found.seeds == [3, 5] and found.num_runs == 2 * 2 * 4
    assert labels(found.attacks) == ["clean", "l2 0", "l2 0.05", "l2 0.1"]
    assert [getattr(table, "radius", None) for table in found.attacks] == [None, 0.0, 0.05, 0.1]
    assert Configuration(seed=4).seeds == [4]


def test_each_seed_has_its_own_start_and_all_attacks_share_it():
    work = build(
        Configuration(
            seed=[0, 1],
            data=tables.Gaussian(n=6, d=2),
            network=[tables.Linear(name="net")],
            perturbation=[tables.Clean(), tables.Fgm(radius=[0.1, 0.2])],
        )
    )
    names = [(case.network, case.perturbation) for case in work.cases]
    attacks = ["clean", "fgm 0.1", "fgm 0.2"]
    assert names == [(f"net, seed {seed}", attack) for seed in (0, 1) for attack in attacks]
    starts = [np.asarray(case.params[0]) for case in work.cases]
    for one, two in ((0, 1), (0, 2), (3, 4)):
        np.testing.assert_array_equal(starts[one], starts[two])
    assert np.any(starts[0] != starts[3])
    assert [float(case.problem.perturbation.radius) for case in work.cases[:3]] == [0.0, 0.1, 0.2]
    assert work.held_out is None


def test_digits_that_are_not_trained_on_are_held_out():
    dataset, held_out = build_datasets(tables.Digits(limit=10))
    whole = build_dataset(tables.Digits())
    assert np.sum(dataset.y == 1) == np.sum(dataset.y == -1) == 5
    assert len(dataset) + len(held_out) == len(whole)
    rows = {row.tobytes() for row in np.concatenate([dataset.x, held_out.x])}
    assert rows == {row.tobytes() for row in whole.x}
    assert build_datasets(tables.Digits())[1] is None


def test_examples_held_out_come_from_a_file_like_the_first(tmp_path):
    x, y = np.array([[1.0, 2.0], [-1.0, -2.5]]), np.array([1.0, -1.0])
    np.savez(tmp_path / "own.npz", x=x, y=y)
    np.savez(tmp_path / "other.npz", x=2 * x, y=y)
    np.savez(tmp_path / "wide.npz", x=np.eye(2, 3), y=y)
    found = read(tmp_path, '[data]\nkind = "npz"\npath = "own.npz"\nheld_out = "other.npz"')
    np.testing.assert_array_equal(build_datasets(found.data)[1].x, 2 * x)
    with pytest.raises(ValueError, match="held out have 3 inputs"):
        build_datasets(found.data.model_copy(update={"held_out": tmp_path / "wide.npz"}))


def test_columns_attack_with_exact_signs():
    attacks = [
        tables.Clean(),
        tables.Fgsm(radius=0.1, smoothing=0.2),
        tables.Pgd(radius=0.1, smoothing=0.3),
    ]
    columns = build_columns(Configuration(perturbation=attacks))
    assert list(columns) == ["clean", "fgsm", "pgd"]
    assert columns["fgsm"].has_named_kinks and columns["pgd"].has_named_kinks


def test_quick_keeps_every_case():
    small = quick(Configuration())
    assert labels(small.network) == labels(Configuration().network)
    assert labels(small.perturbation) == labels(Configuration().perturbation)
    assert all(max(table.hidden) <= 4 for table in small.network)
    (conv,) = quick(Configuration(network=[tables.Conv(channels=[9, 2])])).network
    assert conv.channels == [4, 2]


class OneWidth(tables.Linear):
    """A kind of network whose hidden layers all have one width."""

    hidden: int = 9


def test_quick_narrows_a_width_that_is_one_number():
    configuration = Configuration().model_copy(update={"network": [OneWidth()]})
    assert [table.hidden for table in quick(configuration).network] == [4]


JOB = """
seed = 1
[data]
kind = "gaussian"
n = 12
d = 3
[[network]]
kind = "deep_linear"
hidden = [2]
[[perturbation]]
kind = "clean"
[[perturbation]]
kind = "fgm"
radius = 0.1
[until]
log_loss = -2.0
[solver]
name = "tsit5"
[limit]
enabled = false
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder and the output of one small job, run to its end."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = main(
            ["run", str(folder / "job.toml"), "--output", str(folder / "out"), "--jobs", "1"]
        )
    return SimpleNamespace(code=code, folder=folder / "out", output=output.getvalue())


def test_a_job_says_what_it_does_and_what_came_out(job):
    assert job.code == 0
    lines = job.output.splitlines()
    assert "gaussian data" in lines[0] and "2 run(s)" in lines[0]
    assert "report.html" in lines[-2] and "2 of 2 runs reached" in lines[-1]
    assert re.match(r"Adversarial training enlarges .* in \d of 1 comparisons", lines[-1])
    # Where nothing shows progress, a line tells that a run began.
    begun = next(line for line in lines if "compiling" in line)
    assert "[1/2] deep linear, clean" in begun
    for word in ("margin", "log-loss -2.00", "station-", "align-", "steps", "-2.00", "strong"):
        assert word in job.output


def test_results_are_those_of_the_saved_trajectories(job):
    results = json.loads((job.folder / "results.json").read_text())
    assert results["settings"]["until"]["log_loss"] == -2.0
    assert {"gflow", "jax", "jaxlib", "diffrax", "numpy", "python", "platform"} <= set(
        results["versions"]
    )
    assert [run["perturbation"] for run in results["runs"]] == ["clean", "fgm"]
    for run in results["runs"]:
        trajectory = load(job.folder / run["trajectory"])
        problem, direction = trajectory.problem, trajectory.direction
        # Recomputed from the direction alone; rounding of a few operations.
        expected = {
            "margin": np.min(problem.clean_margins(direction)),
            "adversarial_margin": np.min(problem.margins(direction)),
            "log_loss": problem.log_loss(trajectory.params),
            "alignment": np.min(measures.layer_alignment(direction)),
        }
        for name, value in expected.items():
            assert run["figures"][name] == pytest.approx(float(value), rel=1e-9), name
        assert run["figures"]["steps"] == trajectory.stats["num_steps"]
        assert run["succeeded"]


def test_a_job_can_be_repeated_from_its_folder(job):
    again = read_configuration(job.folder / "config.toml")
    assert again == read_configuration(job.folder.parent / "job.toml")


def test_results_are_not_overwritten(job, capsys):
    before = (job.folder / "results.json").read_bytes()
    assert main(["run", "--output", str(job.folder)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (job.folder / "results.json").read_bytes() == before


def test_the_report_is_rebuilt_from_the_folder(job, capsys):
    page = (job.folder / "report.html").read_text()
    (job.folder / "report.html").unlink()
    assert main(["report", str(job.folder)]) == 0
    assert (job.folder / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[data]\nkind = "npz"\npath = "missing.npz"', ["[data]", "missing.npz"]),
        ('[data]\nkind = "csv"\npath = "one.csv"', ["[data]", "all labels are 1"]),
        ('[data]\nkind = "csv"\npath = "text.csv"', ["[data]", "text.csv"]),
        ('[data]\nkind = "digits"\npositive = 3\nnegative = 3', ["[data]", "two different digits"]),
        (
            '[data]\nkind = "csv"\npath = "good.csv"\n[[network]]\nkind = "deep_linear"\n'
            '[[perturbation]]\nkind = "pgd"\norder = 2.0\nradius = 0.1\nsmoothing = 0.1',
            ["pgd", "smoothing"],
        ),
        (
            '[data]\nkind = "csv"\npath = "good.csv"\n[[network]]\nkind = "conv"',
            ["conv", "2 inputs", "input_shape"],
        ),
        (
            '[data]\nkind = "csv"\npath = "good.csv"\n[[network]]\nkind = "linear"\n'
            '[[perturbation]]\nkind = "pgd"\nradius = 0.1\nbox = [0, 1]',
            ["pgd", "box", "-2"],
        ),
    ],
)
def test_unusable_data_and_options_stop_before_integrating(tmp_path, capsys, text, words):
    (tmp_path / "one.csv").write_text("1,2,1\n3,4,1\n")
    (tmp_path / "text.csv").write_text("a,b,c\n1,2,1\n")
    (tmp_path / "good.csv").write_text("1,2,1\n-1,-2,-1\n")
    (tmp_path / "job.toml").write_text(text)
    out = tmp_path / "out"
    # Workers would be begun, each with JAX, before the data are read.
    assert main(["run", str(tmp_path / "job.toml"), "-o", str(out), "--jobs", "1"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not out.exists()


def test_own_data_is_read(tmp_path):
    x, y = np.array([[1.0, 2.0], [-1.0, -2.5]]), np.array([1.0, -1.0])
    np.savez(tmp_path / "own.npz", inputs=x, y=y)
    np.savetxt(tmp_path / "own.csv", np.column_stack([y, x]), delimiter=";", header="y;a;b")
    npz = tables.Npz(path=tmp_path / "own.npz", x="inputs")
    csv = tables.Csv(path=tmp_path / "own.csv", label=0, delimiter=";", skip_lines=1)
    for table in (npz, csv):
        dataset = build_dataset(table)
        np.testing.assert_array_equal(dataset.x, x)
        np.testing.assert_array_equal(dataset.y, y)


def test_every_network_and_perturbation_is_built():
    dataset = Dataset(np.eye(4), [1, -1, 1, -1])
    built = [build_network(table, dataset) for table in EVERY_TABLE.network]
    assert [network.degree for network in built] == [1, 2, 1 + 1.5, 3, 3, 7]
    attacks = [build_perturbation(table) for table in EVERY_TABLE.attacks]
    assert [float(attack.radius) for attack in attacks] == [0.0, 0.0, 0.1, 1e-9, 0.1]
    assert [attack.order for attack in attacks] == [2.0, np.inf, np.inf, np.inf, 1.0]
    assert [float(edge) for edge in attacks[-1].box] == [-0.5, 1.5]


def test_a_convolutional_network_is_built_as_described():
    images = np.random.default_rng(0).uniform(size=(4, 64))
    dataset = Dataset(images, [0, 1, 2, 2])
    table = tables.Conv(channels=[5], pool="average", hidden=[6], smoothing=0.1)
    layers = [
        networks.Convolution(5, 3),
        networks.AveragePool(2),
        networks.Dense(6),
        networks.Dense(3),
    ]
    expected = networks.conv((1, 8, 8), layers, smoothing=0.1)
    assert build_network(table, dataset) == expected
    strided = tables.Conv(input_shape=[4, 4, 4], channels=[2], size=2, stride=2, padding="VALID")
    layers = [networks.Convolution(2, 2, stride=2, padding="VALID"), networks.Dense(3)]
    assert build_network(strided, dataset) == networks.conv((4, 4, 4), layers)
    pooled = tables.Conv(channels=[2], pool="max", pool_size=4)
    layers = [networks.Convolution(2, 3), networks.MaxPool(4), networks.Dense(3)]
    assert build_network(pooled, dataset) == networks.conv((1, 8, 8), layers)


@pytest.mark.parametrize(
    "name",
    ["dopri8", "rosenbrock", "runge_kutta_chebyshev", "automatic"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("kvaerno3", "kvaerno5")],
)
def test_every_solver_reaches_the_same_point(job, tmp_path, name):
    (tmp_path / "job.toml").write_text(JOB)
    options = [
        "--no-report",
        "--jobs=1",
        "--set",
        f"solver.name={name}",
        "--set",
        "perturbation=[{kind='clean'}]",
    ]
    assert main(["run", str(tmp_path / "job.toml"), "-o", str(tmp_path / "out"), *options]) == 0
    one, other = (
        load(folder / "trajectories" / "01.npz") for folder in (job.folder, tmp_path / "out")
    )
    if name not in ("automatic", "rosenbrock"):  # which say what they came to
        assert other.settings["solver"].lower() == name.replace("_", "")
    np.testing.assert_allclose(other.vectors[-1], one.vectors[-1], atol=1e-5)


def test_an_interrupt_keeps_what_was_computed(tmp_path, capsys, monkeypatch):
    (tmp_path / "job.toml").write_text(JOB)
    follow = working.follow
    calls = []

    def interrupted_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return follow(*arguments)

    monkeypatch.setattr(working, "follow", interrupted_at_the_second)
    options = ["-o", str(tmp_path / "out"), "--jobs", "1"]
    assert main(["run", str(tmp_path / "job.toml"), *options]) == 130
    output = capsys.readouterr().out
    assert "Interrupted" in output and "gflow run --resume" in output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["interrupted"] and results["planned"] == 2 and len(results["runs"]) == 1
    assert "interrupted from the keyboard" in (tmp_path / "out" / "report.html").read_text()


def test_an_interrupt_inside_a_run_ends_the_job(tmp_path, capsys, monkeypatch):
    """Where the flow keeps what it has and returns, the next run does not begin."""
    (tmp_path / "job.toml").write_text(JOB)
    follow = working.follow
    calls = []

    def interrupted_inside(configuration, case, saved, seconds, report):
        def stop(status):
            raise KeyboardInterrupt

        calls.append(case)
        return follow(configuration, case, saved, seconds, stop)

    monkeypatch.setattr(working, "follow", interrupted_inside)
    options = ["-o", str(tmp_path / "out"), "--jobs", "1", "--no-report"]
    assert main(["run", str(tmp_path / "job.toml"), *options]) == 130
    assert len(calls) == 1 and "gflow run --resume" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert found["outcome"] == "interrupted"


def test_a_failed_run_is_marked_and_tells_no_margin(tmp_path, capsys):
    # 16 steps are too few for any of them.
    arguments = ["run", "--no-report", "-o", str(tmp_path / "out"), "--jobs", "1"]
    arguments += ["--set", "solver.max_steps=16"]
    (tmp_path / "job.toml").write_text(JOB)
    assert main([*arguments, str(tmp_path / "job.toml")]) == 1
    output = capsys.readouterr().out
    assert "0 of 2 runs reached" in output and "not arrived" in output
    assert not (tmp_path / "out" / "report.html").exists()
    for run in json.loads((tmp_path / "out" / "results.json").read_text())["runs"]:
        assert not run["succeeded"] and len(run["result"]) > 20
        assert set(run["figures"]) == {"log_loss", "log_kappa", "log1p_time", "steps"}
