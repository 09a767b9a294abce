"""Figures draw the numbers of the trajectory; the page stands alone; no failed run looks good."""

import base64
import csv
import dataclasses
import json
import math
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

import gflow
from gflow import measures, networks, perturbations, report
from gflow.report.axes import LOG10, abscissa, power_of_ten
from gflow.report.quantities import distance_to_end, layer_alignments
from gflow.report.vector import svg
from gflow.results import RESULTS

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def trajectory():
    network = networks.deep_linear((3, 2, 1))
    dataset = gflow.datasets.gaussian(12, 3, seed=1)
    problem = gflow.Problem(
        network, dataset, loss=gflow.losses.logistic(), perturbation=perturbations.fgm(0.1)
    )
    return gflow.integrate(
        problem, network.init(0), until=gflow.Until(log_loss=-2.0), tolerance=1e-6
    )


@pytest.fixture(scope="module")
def failed(trajectory):
    """The same numbers under the verdict of a run that did not reach its target."""
    return dataclasses.replace(trajectory, result=RESULTS.radius_above_margin)


@pytest.fixture(autouse=True)
def _no_figure_left_open():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


CURVES = {
    # plot function -> what its first line must show
    report.plot_loss: lambda t: t.log_loss / LOG10,
    report.plot_margin: lambda t: t.margin,
    report.plot_smoothed_margin: lambda t: t.smoothed_margin,
    report.plot_margins: lambda t: t.clean_margin,
    report.plot_stationarity: lambda t: np.log10(t.stationarity),
    report.plot_layer_alignment: lambda t: layer_alignments(t)[1][:, 0],
    report.plot_scale: lambda t: t.log_kappa / LOG10,
    report.plot_time: lambda t: t.log1p_time / LOG10,
}


@pytest.mark.parametrize("plot", CURVES, ids=lambda plot: plot.__name__)
def test_a_plot_draws_the_numbers_of_the_trajectory(trajectory, plot):
    axes = plot(trajectory, against="kappa", color="C3")
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_xdata(), trajectory.log_kappa / LOG10)
    np.testing.assert_allclose(line.get_ydata(), CURVES[plot](trajectory))
    assert line.get_color() == "C3"
    assert axes.get_xlabel() and axes.get_ylabel()


@pytest.mark.parametrize("plot", [*CURVES, report.plot_direction_convergence])
def test_a_plot_draws_on_the_given_axes(trajectory, plot):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert plot(trajectory, axes) is axes
    assert axes.lines


def test_direction_convergence_ends_in_a_gap(trajectory):
    (line,) = report.plot_direction_convergence(trajectory).lines
    values = np.asarray(line.get_ydata())
    vectors = trajectory.vectors
    expected = np.linalg.norm(vectors - vectors[-1], axis=1)
    np.testing.assert_allclose(10 ** values[:-1], expected[:-1], rtol=1e-9)
    assert np.isnan(values[-1])
    np.testing.assert_allclose(distance_to_end(trajectory), expected, atol=1e-15)


def test_margins_are_told_apart(trajectory):
    axes = report.plot_margins(trajectory)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["clean", "adversarial", "smoothed"]
    assert len({line.get_linestyle() for line in axes.lines}) == 3
    for line, column in zip(axes.lines, ("clean_margin", "margin", "smoothed_margin"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), getattr(trajectory, column))
    # The highest margin is in view, and what lies far below zero is not.
    low, high = axes.get_ylim()
    assert high > trajectory.clean_margin.max() and low < 0 and low > -high


@pytest.mark.parametrize(
    ("against", "column", "factor"),
    [
        ("time", "log1p_time", LOG10),
        ("loss", "log_loss", LOG10),
        ("kappa", "log_kappa", LOG10),
        ("steps", "num_steps_at", 1),
    ],
)
def test_curves_can_be_drawn_against(trajectory, against, column, factor):
    x = abscissa(trajectory, against)
    np.testing.assert_allclose(x.values, getattr(trajectory, column) / factor)
    axes = report.plot_margin(trajectory, against=against)
    report.plot_margin(trajectory, axes, against=against)
    # A falling quantity runs from right to left, however many curves there are.
    assert axes.xaxis_inverted() == (against == "loss")


def test_an_unknown_abscissa_is_refused(trajectory, own_words):
    with pytest.raises(ValueError, match="'time', 'loss', 'log_loss', 'kappa' or 'steps'"):
        report.plot_loss(trajectory, against="epochs")


def test_alignment_is_that_of_the_measure(trajectory):
    first = measures.layer_alignment(trajectory.layout.unflatten(trajectory.vectors[0]))
    points, values = layer_alignments(trajectory)
    assert list(points) == list(range(len(trajectory)))
    np.testing.assert_allclose(values[0], first)
    few, some = layer_alignments(trajectory, most=5)
    assert few[0] == 0 and few[-1] == len(trajectory) - 1 and len(few) == 5
    np.testing.assert_allclose(some, values[few])
    assert report.record(trajectory, network="n", perturbation="p", seconds=0).figures[
        "alignment"
    ] == pytest.approx(float(values[-1].min()))


@pytest.mark.parametrize(
    ("exponent", "text"),
    [
        (0, "1"),
        (1, "10"),
        (2, "10²"),
        (-12, "10⁻¹²"),
        (0.5, "3.16"),
        (-0.3010299957, "0.5"),
        (400.5, ""),
    ],
)
def test_decades_are_written_as_powers(exponent, text):
    assert power_of_ten(exponent) == text


def test_figures_that_compare_have_a_curve_a_run(trajectory):
    figure = report.overview_figure({"one": trajectory, "two": trajectory})
    assert [len(axes.lines) for axes in figure.axes] == [2] * 6
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colours)) == 2
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["one", "two"]
    figure = report.margins_figure({"one": trajectory, "two": trajectory})
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]


def test_a_record_of_a_failed_run_holds_no_figure_that_looks_like_a_result(failed):
    run = report.record(failed, network="n", perturbation="p", seconds=1.0)
    assert not run.succeeded
    assert run.result == failed.message
    assert set(run.figures) == {"log_loss", "log_kappa", "log1p_time", "steps"}


def test_numbers_that_are_not_finite_are_null(trajectory, tmp_path):
    columns = {**trajectory.columns, "smoothed_margin": np.full(len(trajectory), np.nan)}
    run = report.record(
        dataclasses.replace(trajectory, columns=columns), network="n", perturbation="p", seconds=1.0
    )
    results = make_results([run], settings={"order": math.inf})
    path = report.write_results(results, tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["runs"][0]["figures"]["smoothed_margin"] is None
    assert content["settings"]["order"] == "inf"
    assert content["schema"] == 2


def test_results_read_back(trajectory, tmp_path):
    run = report.record(trajectory, network="n", perturbation="p", seconds=1.0, file="x.npz")
    results = make_results([run])
    report.write_results(results, tmp_path)
    assert report.read_results(tmp_path) == results


@pytest.mark.parametrize("text", [None, "{", "[]", '{"schema": 99}'])
def test_unreadable_results_are_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        report.read_results(tmp_path)


def make_results(runs, **changes):
    options = {
        "settings": {"loss": "logistic", "gradient": "frozen"},
        "dataset": {"name": "<points> & labels", "examples": 12, "inputs": 3, "classes": 2},
        "planned": len(runs),
        "interrupted": False,
        "seconds": 1.0,
        "created": "2026-01-02 03:04:05",
        "versions": {"gflow": "0"},
    }
    return report.Results(runs=runs, **{**options, **changes})


class Page(HTMLParser):
    """Checks that elements close in order; keeps what would be fetched, ids and text."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.ids, self.links, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.append(values["href"])
        elif tag in ("script", "link", "iframe", "object", "embed", "img"):
            self.fetched.append(tag)
        else:
            # Figures hold images of pixels within themselves.
            hrefs = [v for k, v in values.items() if k in ("src", "href", "xlink:href")]
            self.fetched += [href for href in hrefs if not href.startswith(("#", "data:"))]
        self.ids += [values["id"]] if "id" in values else []

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(trajectory, failed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs = [
        report.record(trajectory, network="net", perturbation="good", seconds=1.0),
        report.record(failed, network="net", perturbation="bad", seconds=1.0),
        report.record(trajectory, network="other", perturbation="good", seconds=1.0),
    ]
    trajectories = {
        ("net", "good"): trajectory,
        ("net", "bad"): failed,
        ("other", "good"): trajectory,
    }
    results = make_results(runs, planned=4, interrupted=True)
    path = report.write_page(results, trajectories, folder, configuration="seed = 1 # <&>")
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_fetches_nothing(page):
    parsed = Page(page)
    assert parsed.fetched == []
    assert len(parsed.ids) == len(set(parsed.ids)) > 20
    assert "@import" not in page and "url(http" not in page
    # Only citations lead elsewhere; files to keep are in the page.
    outside = [link for link in parsed.links if not link.startswith("data:")]
    assert {link.split("/")[2] for link in outside} == {"openreview.net", "arxiv.org"}


def test_the_files_of_a_figure_are_in_the_page(page, trajectory):
    files = [link for link in Page(page).links if link.startswith("data:")]
    kinds = [link.split(";")[0].removeprefix("data:") for link in files]
    # First the table of runs, then each figure's three files.
    assert kinds[:4] == ["text/csv", "application/pdf", "image/svg+xml", "text/csv"]
    pdf, picture, table = (base64.b64decode(link.split(",")[1]) for link in files[1:4])
    assert pdf.startswith(b"%PDF") and b"</svg>" in picture and b"#010203" not in picture
    lines = table.decode().splitlines()
    assert lines[0].startswith("run,log10_1_plus_t,log10_minus_log_loss,Smoothed margin")
    assert len(lines) == 1 + 2 * len(trajectory)
    numbers = [float(part) for part in lines[len(trajectory)].split(",")[1:]]
    last = [trajectory.log1p_time[-1] / LOG10, trajectory.log_minus_log_loss[-1] / LOG10]
    np.testing.assert_allclose(numbers, [*last, trajectory.smoothed_margin[-1]], rtol=1e-9)


def test_the_table_of_runs_holds_every_digit_and_nothing_of_a_failed_run(page, trajectory):
    link = next(link for link in Page(page).links if link.startswith("data:text/csv"))
    text = base64.b64decode(link.split(",")[1]).decode()
    good, bad, _ = csv.DictReader(text.splitlines())
    assert (good["network"], good["trained_under"]) == ("net", "good")
    assert float(good["adversarial_margin"]) == trajectory.margin[-1]
    assert bad["outcome"] == "radius_above_margin" and bad["adversarial_margin"] == ""
    assert float(bad["log_loss"]) == trajectory.log_loss[-1]


def test_the_page_tells_what_there_is(page, failed):
    text = " ".join(" ".join(Page(page).text).split())
    assert "2 of 4 runs reached" in text
    assert "interrupted from the keyboard: 1 of 4 runs" in text
    assert failed.message in text and "have no verdict: net, bad" in text
    assert "<points> & labels" in text and "seed = 1 # <&>" in text
    for column in report.FLOW_COLUMNS:
        assert column.meaning in text
    # Three figures a network, each with words for those who do not see it.
    assert page.count('<svg role="img" aria-label="') == 6
    # Light and dark: no ink of its own but the palette's.
    assert "currentColor" in page and "prefers-color-scheme: dark" in page
    assert "#010203" not in page


def test_figures_of_a_page_are_reproducible(trajectory):
    def draw():
        return report.overview_figure({"one": trajectory})

    first = svg(draw, name="a", description='"<&>"')
    assert first == svg(draw, name="a", description='"<&>"')
    assert 'aria-label="&quot;&lt;&amp;>&quot;"' in first
