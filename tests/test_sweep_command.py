"""`gflow sweep`: lists in a file, the folder, going on, and what the page shows."""

import csv
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import gflow
from gflow.__main__ import main
from gflow._files import locked
from gflow.commands.asking import read_sweep
from gflow.commands.explaining import document_toml
from gflow.commands.lists import MOST_RUNS, entries
from gflow.commands.reading import UserError
from gflow.configuration import Configuration
from gflow.report.multiples import multiples, numbers_of
from gflow.report.sweep_record import read_record
from gflow.sweeps.table import COLUMNS

JOB = """
seed = [1, 2]
loss = "exponential"
[data]
kind = "gaussian"
n = 6
d = 3
[[network]]
kind = "linear"
[[perturbation]]
kind = "fgm"
radius = [0.1, 0.2, 1.0]
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "job.toml").write_text(JOB)
    assert main(["sweep", str(folder / "job.toml"), "--out", str(folder / "out")]) == 1
    return folder / "out"


def settings(text):
    return [run.settings for run in entries(tomllib.loads(text), "the file")]


def test_lists_stand_for_as_many_runs():
    found = settings(
        'seed = [3, 1]\nloss = ["logistic", "exponential"]\n'
        '[data]\nkind = "gaussian"\nd = 3\nseed = [0, 7]\n'
        '[[network]]\nkind = "linear"\n'
        '[[network]]\nkind = "mlp"\nname = "wide"\nhidden = [[8], [4, 4]]\nsmoothing = [0.1, 0.2]\n'
        '[[perturbation]]\nkind = "fgm"\nradius = [0.1, 0.2]\n'
        '[[perturbation]]\nkind = "clean"\n'
    )
    networks = 1 + 2 * 2
    assert len(found) == 2 * 2 * 2 * networks * 3
    assert len({repr(row) for row in found}) == len(found)
    assert [row["seed"] for row in found[:4]] == [3, 1, 3, 1]
    wide = [row for row in found if row["network"] == "wide"]
    assert {str(row["network.hidden"]) for row in wide} == {"[8]", "[4, 4]"}
    assert {row["network.smoothing"] for row in wide} == {0.1, 0.2}
    assert all("radius" not in row for row in found if row["perturbation"] == "clean")
    assert {row["data.seed"] for row in found} == {0, 7}


def test_the_sweep_on_the_page_is_one():
    page = Path(__file__).parent.parent / "docs" / "sweeps.md"
    (job,) = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(settings(job)) == 4 * 2 * 2


def test_each_run_has_the_configuration_of_its_settings():
    text = (
        '[data]\nkind = "gaussian"\nd = 3\nseed = [0, 7]\n'
        '[[network]]\nkind = "mlp"\nhidden = [[8], [4, 4]]\n'
        '[[perturbation]]\nkind = "pgd"\nradius = 0.1\norder = [1.0, 2.0]\nbox = [0.0, 1.0]\n'
    )
    found = entries(tomllib.loads(text), "the file")
    assert len(found) == 8
    for run in found:
        assert run.configuration.num_runs == 1
        (network,), (attack,) = run.configuration.network, run.configuration.attacks
        assert network.hidden == run.settings["network.hidden"]
        assert (attack.order, attack.box) == (run.settings["perturbation.order"], [0.0, 1.0])
        assert run.configuration.data.seed == run.settings["data.seed"]


def test_without_a_file_the_networks_and_attacks_of_the_main_job_are_run():
    found = entries({}, "the command line")
    assert len(found) == Configuration().num_runs
    assert {run.settings["network"] for run in found} == {t.name for t in Configuration().network}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede = [1]", "`sede`: no such field"),
        ("seed = []", "`seed`: the list is empty"),
        ("seed = [1, 1]", "`seed`: the values must differ"),
        ("seed = [1, -1]", r"`seed` = -1"),
        ('loss = ["logistic", "hinge"]', r"`loss` = 'hinge'"),
        ("tolerance = [1]", "`tolerance`: no such field"),
        ("[limit]\nsmoothing = [0.1, 0.2]", r"`limit\.smoothing`"),
        (
            '[[network]]\nkind = "linear"\n[[network]]\nkind = "mlp"\nsmoothing = [0.1, -2.0]',
            r"`network\[1\]\.smoothing` = -2\.0",
        ),
        (
            '[[network]]\nkind = "mlp"\nhiden = [[3]]',
            r"`network\[0\]\.hiden`.*did you mean `hidden`",
        ),
        (
            f"seed = {list(range(200))}\n[data]\nkind = 'gaussian'\nseed = {list(range(101))}",
            "20000",
        ),
    ],
)
def test_a_wrong_value_in_a_list_is_refused_by_its_place(text, words):
    with pytest.raises(UserError, match=words):
        entries(tomllib.loads(text), "the file")
    assert MOST_RUNS == 20_000


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("enabled = false", "a sweep runs to limits"),
        ("reproduce = true", "a sweep searches once"),
        ("max_seconds = 3.0", "seconds for all its runs together"),
    ],
)
def test_what_a_sweep_does_not_do_is_refused(tmp_path, field, words):
    (tmp_path / "job.toml").write_text(f"[limit]\n{field}\n")
    with pytest.raises(UserError, match=words):
        read_sweep(tmp_path / "job.toml")


def test_a_document_reads_back():
    document = tomllib.loads(JOB) | {"until": {"time": float("inf")}}
    assert tomllib.loads(document_toml(document, "a comment")) == document
    assert tomllib.loads(document_toml({}, "nothing")) == {}


def test_the_table_is_that_of_the_limits(swept):
    with (swept / "sweep.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    names = ["network", "perturbation", "seed", "radius"]
    assert sorted(rows[0]) == sorted([*names, *COLUMNS]) and len(rows) == 6
    found = gflow.Sweep.load(swept / "runs")
    clean = gflow.max_margin(found[0].limit.problem.dataset, radius=0.0).margin
    assert 0.2 < clean < 1.0
    for row, run in zip(rows, found, strict=True):
        radius = float(row["radius"])
        assert float(run.limit.problem.perturbation.radius) == radius
        if radius < clean:
            assert float(row["margin"]) == run.limit.margin
            assert run.limit.margin == pytest.approx(clean - radius, abs=1e-12)
        else:
            assert (row["outcome"], row["margin"]) == ("radius_above_margin", "")


def test_the_record_holds_the_same_numbers(swept):
    record = read_record(swept)
    found = gflow.Sweep.load(swept / "runs")
    assert record.num_arrived == len(found.arrived) == 4
    assert [row["margin"] for row in record.rows] == [row["margin"] for row in found.table()]
    assert record.settings == tomllib.loads(JOB)
    assert json.loads((swept / "results.json").read_text())["versions"]["gflow"]


def test_the_page_has_a_panel_for_each_network_and_attack(swept):
    page = (swept / "report.html").read_text()
    assert "4 of 6 runs came to their limits" in page
    assert page.count("<svg") == 1 and "linear, fgm" in page
    assert "4 of 6 runs arrived" in page and "2 radius above margin" in page
    assert not re.search(r"\bNone\b|\bnan\b", page)


def test_the_report_is_drawn_anew_from_the_folder(swept, capsys):
    before = (swept / "report.html").read_text()
    (swept / "report.html").unlink()
    assert main(["report", str(swept)]) == 0
    assert (swept / "report.html").read_text() == before
    assert "Written" in capsys.readouterr().out


def test_the_sweep_is_gone_on_with_and_its_file_repeats_it(swept, capsys):
    before = (swept / "sweep.csv").read_bytes()
    assert main(["sweep", "--resume", str(swept), "--no-report"]) == 1
    assert (swept / "sweep.csv").read_bytes() == before  # the seconds too: nothing was searched
    assert "4 of 6" in capsys.readouterr().out
    again = read_sweep(swept / "config.toml").runs
    assert [run.settings for run in again] == settings(JOB)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{job}", "-o", "{out}"], "holds results already"),
        (["{job}", "-o", ""], "the path is empty"),
        (["--resume", "{out}", "--set", "seed=1"], "leave out CONFIG"),
        (["--resume", "{out}/runs"], "holds no sweep to go on with"),
        (["{job}", "--set", "seed=[0,0]"], "the values must differ"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(swept, capsys, arguments, words):
    given = [text.format(job=swept.parent / "job.toml", out=swept) for text in arguments]
    assert main(["sweep", *given]) == 2
    assert words in capsys.readouterr().err


def test_a_killed_sweep_is_not_begun_anew_by_mistake(swept, tmp_path, capsys):
    """The same command without --resume would delete what it found."""
    killed = tmp_path / "killed"
    shutil.copytree(swept, killed)
    for name in ("results.json", "sweep.csv", "report.html"):
        (killed / name).unlink()
    kept = {path.name: path.read_bytes() for path in (killed / "runs").glob("*.npz")}
    assert main(["sweep", str(swept.parent / "job.toml"), "-o", str(killed)]) == 2
    assert "`gflow sweep --resume" in capsys.readouterr().err
    assert kept == {path.name: path.read_bytes() for path in (killed / "runs").glob("*.npz")}


def test_a_sweep_whose_file_was_changed_is_not_gone_on_with(swept, tmp_path, capsys):
    """In the words of the command, which knows no function `make`."""
    changed = tmp_path / "changed"
    shutil.copytree(swept, changed)
    text = (changed / "config.toml").read_text()
    (changed / "config.toml").write_text(text.replace("n = 6", "n = 8"))
    assert main(["sweep", "--resume", str(changed), "--no-report"]) == 2
    told = capsys.readouterr().err
    assert "holds limits of other problems" in told and "make" not in told


@pytest.mark.parametrize(
    ("command", "name"),
    [("sweep", "runs/mine.npz"), ("sweep", "config.toml"), ("run", "ends/mine.npz")],
)
def test_files_of_others_are_neither_deleted_nor_replaced(tmp_path, capsys, command, name):
    """In a folder that no command has written into."""
    job, mine = tmp_path / "job.toml", tmp_path / name
    job.write_text(JOB if command == "sweep" else JOB.replace("[1, 2]", "1", 1))
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("# mine")
    assert main([command, str(job), "-o", str(tmp_path), "--no-report"]) == 2
    told = capsys.readouterr().err
    assert "nothing was begun" in told and mine.name in told and "--overwrite" in told
    assert mine.read_text() == "# mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"job.toml", name.split("/")[0]}


def test_a_folder_in_use_is_refused(swept, capsys):
    with locked(swept):
        assert main(["sweep", "--resume", str(swept)]) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_help_tells_of_lists(capsys):
    assert main(["sweep", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "radius = [0.1, 0.2]" in shown and "Fields of CONFIG.toml" in shown
    assert main(["config"]) == 0
    assert "`gflow sweep`" in capsys.readouterr().out


def rows_with(**given):
    """Rows of made-up runs, the product of the lists, with a margin that tells them apart."""
    shape = [len(values) for values in given.values()]
    found = []
    for index in np.ndindex(*shape):
        row = {name: values[i] for (name, values), i in zip(given.items(), index, strict=True)}
        found.append({**row, "margin": 1.0 + sum(index), "arrived": True, "outcome": "successful"})
    return found


def test_margins_are_drawn_against_every_number_that_varies():
    names = ["network", "perturbation", "radius", "network.smoothing", "loss", "seed"]
    rows = rows_with(
        network=["a", "b"],
        perturbation=["fgm"],
        radius=[0.001, 0.1],
        **{"network.smoothing": [0.1, 0.2, 0.3]},
        loss=["logistic"],
        seed=[0, 1],
    )
    clean = {"perturbation": "clean", "radius": None, "margin": 9.0}
    rows += [{**row, **clean} for row in rows[:2]]
    assert numbers_of(rows, names) == ["radius", "network.smoothing"]
    first, second = multiples(rows, names, "radius")
    assert (first.place, second.place) == (("a", "fgm"), ("b", "fgm"))
    assert first.logarithmic and first.places == [0.001, 0.1]
    assert [each.name for each in first.series] == [f"network.smoothing 0.{n}" for n in (1, 2, 3)]
    assert all(len(each.rows) == 4 for each in first.series)  # radii x seeds
    assert first.beside == {"clean": 9.0} and second.beside == {}
    only_seeds = rows_with(network=["a"], perturbation=["fgm"], radius=[0.1], seed=[0, 1])
    assert numbers_of(only_seeds, ["network", "perturbation", "radius", "seed"]) == ["seed"]
