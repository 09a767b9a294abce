"""Studies: what a finding compares, what each study finds in its small form, and the ledger."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gflow import datasets, studies
from gflow.__main__ import main
from gflow.report.prose import prose
from gflow.studies import Finding, Measurement, Study, Verdict, ledger, registry, style
from gflow.studies.markdown import markdown

HOLDING = {
    "difference": (2.0, 2.05, 0.1),
    "ratio": (1e-8, 1.05e-8, 0.1),
    "at most": (1.0, 0.2, 0.0),
    "at least": (1.0, 1.2, 0.0),
    "apart": (1.0, 1.2, 0.1),
}
FAILING = {
    "difference": (2.0, 2.15, 0.1),
    "ratio": (1e-8, 1.15e-8, 0.1),
    "at most": (1.0, 1.2, 0.1),
    "at least": (1.0, 0.8, 0.1),
    "apart": (1.0, 1.05, 0.1),
}


@pytest.mark.parametrize("compared", HOLDING)
def test_a_finding_holds_within_its_tolerance_only(compared):
    assert Finding("q", *HOLDING[compared], compared).holds
    assert not Finding("q", *FAILING[compared], compared).holds


@pytest.mark.parametrize("compared", HOLDING)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_holds(compared, value):
    assert not Finding("q", 1.0, value, 1.0, compared).holds
    assert not Finding("q", value, 1.0, 1.0, compared).holds


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_is_a_number(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        Finding("q", 1.0, 1.0, tolerance)


def study(run, correction=""):
    return Study("made-up", "Made up", "A claim.", "A setting.", "A paper", run, draw, correction)


def draw(data):
    from gflow.studies.style import panels

    figure, (axes,) = panels(1)
    axes.plot(data["x"])
    return figure


GOOD = Finding("one", 1.0, 1.0, 0.1)
BAD = Finding("one", 1.0, 2.0, 0.1)


@pytest.mark.parametrize(
    ("findings", "correction", "error", "word"),
    [
        ((GOOD,), "", "", "holds"),
        ((GOOD,), "Another thing.", "", "holds as corrected"),
        ((GOOD, BAD), "Another thing.", "", "does not hold"),
        ((), "", "", "does not hold"),
        ((), "", "It broke off.", "not measured"),
    ],
)
def test_the_word_of_a_verdict(findings, correction, error, word):
    made = study(lambda small: Measurement(findings), correction)
    verdict = Verdict(made, True, findings, {}, 0.0, error)
    assert verdict.word == word
    assert verdict.holds == word.startswith("holds")


def test_an_unknown_study_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="'linear-clean' is meant"):
        studies.find("linear-clear")


def test_a_study_says_what_it_tries():
    for name in studies.NAMES:
        found = studies.find(name)
        assert found.name == name
        for words in (found.title, found.claim, found.setting, found.source):
            assert words.strip()


@pytest.fixture
def made_up(monkeypatch):
    """Replaces the registry's table by studies that measure nothing."""

    def broken(small):
        raise RuntimeError("The run broke off.")

    table = {
        "good": study(lambda small: Measurement((GOOD,), {"x": [1.0, 2.0]})),
        "bad": study(lambda small: Measurement((BAD,), {"x": [1.0, 2.0]})),
        "broken": study(broken),
    }
    table = {name: dataclasses.replace(one, name=name) for name, one in table.items()}
    monkeypatch.setattr(registry, "find", table.__getitem__)
    monkeypatch.setattr(studies, "find", table.__getitem__)
    return table


def test_a_run_that_fails_is_a_verdict(made_up):
    verdict = studies.run("broken")
    assert verdict.word == "not measured"
    assert "broke off" in str(verdict)


@pytest.mark.parametrize(("names", "code"), [(["good"], 0), (["good", "bad", "broken"], 1)])
def test_the_ledger_holds_every_study(made_up, tmp_path, capsys, names, code):
    folder = tmp_path / "out"
    assert main(["study", *names, "--output", str(folder)]) == code
    record = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in record["studies"]] == names
    assert {"python", "jax", "processor"} <= record["environment"].keys()
    assert record["studies"][0]["findings"][0]["holds"]
    page = (folder / "ledger.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 * sum(name != "broken" for name in names)  # wide and narrow
    assert (folder / "good.png").exists() and (folder / "good.svg").exists()
    assert not list(folder.glob(".gflow*"))
    assert "1 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        ("difference", "± 0.1"),
        ("ratio", "± 10 %"),
        ("at most", "at most, + 0.1"),
        ("at least", "at least, - 0.1"),
        ("apart", "differs by more than 0.1"),
    ],
)
def test_the_page_says_how_numbers_were_compared(compared, words):
    assert ledger.relation(Finding("q", 1.0, 1.0, 0.1, compared)) == words


def test_code_in_sentences_is_marked_and_the_rest_is_escaped():
    text = prose("norms <z> by `max_margin`, `a < b`.")
    assert text == "norms &lt;z&gt; by <code>max_margin</code>, <code>a &lt; b</code>."


def test_panels_stack_on_narrow_pages_in_reading_order():
    figure, axes = style.styled(lambda: style.panels(2, 2))
    narrow, stacked = style.styled(lambda: style.stacked(lambda: style.panels(2, 2)))
    assert len(axes) == len(stacked) == 4
    tops = [one.get_position().y0 for one in stacked]
    assert tops == sorted(tops, reverse=True)
    assert narrow.get_figwidth() < figure.get_figwidth()


def test_the_numbers_of_a_paper_need_its_data():
    from gflow.studies import minimum_norms

    data = minimum_norms._data(10)
    assert data.x.shape == (10, 100)
    exact = minimum_norms._by_linear_program(data, 1.0)
    assert minimum_norms._least_norm(data, 1.0) == pytest.approx(exact, rel=1e-8)
    other = datasets.gaussian(10, 100, gap=0.0, seed=0)
    assert abs(minimum_norms._least_norm(other, 1.0) - 1.8497) > 5e-5


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_flip_radius_of_two_neurons_and_of_one_a_cluster(power):
    from gflow.studies import clusters

    labels = np.where(np.arange(8) % 2 == 0, 1.0, -1.0)
    both = np.stack([labels > 0, labels < 0]).astype(float)
    found = clusters._distance(both, np.array([1.0, -1.0]), power, np.eye(8)[0], 1.0)
    assert found == pytest.approx(8**-0.5, rel=1e-5)
    alone = clusters._distance(np.eye(8), labels, power, np.eye(8)[0], 1.0)
    # k = 1: min a² + 4 b² with 1 - a = 4 b. k >= 2: all of b in one cluster, a = b = 1/2.
    assert alone == pytest.approx(5**-0.5 if power == 1 else 0.5**0.5, rel=1e-3)


def test_without_figures_there_is_only_the_record(made_up, tmp_path):
    assert main(["study", "good", "--output", str(tmp_path), "--no-figures"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.json", "ledger.md"]


def test_the_ledger_in_words_says_what_the_record_says(made_up, tmp_path):
    assert main(["study", *made_up, "--output", str(tmp_path), "--no-figures"]) == 1
    record = json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8"))
    text = (tmp_path / "ledger.md").read_text(encoding="utf-8")
    assert text == markdown(record)
    assert "1 of 3 hold" in text and "Not measured: The run broke off." in text
    rows = [line for line in text.splitlines() if line.startswith("| one |")]
    assert rows == [
        "| one | 1 | 1 | ± 0.1 | holds |",
        "| one | 1 | 2 | ± 0.1 | fails |",
    ]
    assert all(one["cpu_seconds"] >= 0 for one in record["studies"])


def test_data_that_are_not_there_are_a_verdict(monkeypatch, tmp_path):
    monkeypatch.setenv("GFLOW_DATA", str(tmp_path))
    verdict = studies.run("paper-experiment", small=False)
    assert verdict.word == "not measured" and "No MNIST files" in verdict.error


def test_the_record_that_is_committed_is_of_these_studies():
    """Every study stands in it with the words and the quantities of today, and holds."""
    folder = Path(__file__).parent.parent / "benchmarks" / "results" / "studies"
    record = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    assert (folder / "ledger.md").read_text(encoding="utf-8") == markdown(record)
    small = {one["name"]: one for one in record["studies"] if one["form"] == "small"}
    assert small.keys() == set(studies.NAMES)
    for name, one in small.items():
        study = studies.find(name)
        assert (one["claim"], one["correction"]) == (study.claim, study.correction), name
        assert one["findings"] and one["verdict"].startswith("holds"), name


def test_the_list_names_every_study_and_imports_no_jax():
    program = (
        "import sys; from gflow.__main__ import main; main(['study', '--list']);"
        "print(*sys.modules, sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    lines = run.stdout.split("\n")
    assert "jax" not in lines and "matplotlib" not in lines
    for name in studies.NAMES:
        assert any(line.startswith(f"{name} ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study"], "--all"),
        (["study", "linear-clean", "--all"], "--all"),
        (["study", "linear-clear"], "linear-clean"),
    ],
)
def test_a_wrong_call_is_refused(arguments, words, capsys, tmp_path):
    assert main([*arguments, *(["-o", str(tmp_path)] if len(arguments) > 1 else [])]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("name", studies.NAMES)
def test_the_small_form_holds(name):
    verdict = studies.run(name)
    assert verdict.findings
    assert verdict.holds, str(verdict)
    assert verdict.study.figure(verdict.data).axes


@pytest.mark.parametrize("name", ["linear-clean"])
def test_a_wrong_measurement_fails(name):
    verdict = studies.run(name)
    assert verdict.holds
    for one in verdict.findings:
        off = one.tolerance * (abs(one.predicted) if one.compared == "ratio" else 1.0)
        wrong = dataclasses.replace(one, measured=one.predicted + 1.01 * off)
        assert not wrong.holds
