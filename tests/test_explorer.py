"""The plane along a slider: what is drawn is what the network says, and the page stands alone."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.path import Path as Line

import gflow
from gflow import losses, networks, perturbations, report
from gflow.report.drawing import SIDE, View
from gflow.report.explorer import view_of
from gflow.report.plane import heights, window_around
from gflow.report.slider import places_on
from gflow.results import RESULTS

RADIUS = 0.2


@pytest.fixture(scope="module")
def flow():
    """A linear predictor, whose limit `max_margin` knows."""
    network, dataset = networks.linear(2), gflow.datasets.gaussian(10, 2, gap=0.6, seed=4)
    attack = perturbations.fgm(RADIUS, order=2)
    problem = gflow.Problem(network, dataset, loss=losses.exponential(), perturbation=attack)
    until, solver = gflow.Until(log_loss=-200.0), gflow.Rosenbrock()
    return gflow.integrate(problem, network.init(0), until=until, solver=solver)


@pytest.fixture(scope="module")
def reference(flow):
    return gflow.max_margin(flow.problem.dataset, radius=RADIUS, order=2)


@pytest.fixture(scope="module")
def view(flow, reference):
    return view_of(flow, (reference.direction, reference.multipliers, reference.margin))


def plane_of(view: View, points: np.ndarray) -> np.ndarray:
    """Points of the plane of places in the drawing."""
    return [view.window.left, view.window.bottom] + (np.asarray(points) * [1, -1] + [0, SIDE]) * (
        view.window.width / SIDE
    )


def loops(path: str) -> list[np.ndarray]:
    """The closed lines of an SVG path of absolute lines."""
    assert re.fullmatch(r"(M[-\d.,eL]+Z)*", path)
    return [
        np.array([pair.split(",") for pair in loop[1:].split("L")], float)
        for loop in path.split("Z")[:-1]
    ]


def inside(points: np.ndarray) -> np.ndarray:
    return np.all((points > 1.0) & (points < SIDE - 1.0), axis=1)


def test_boundary_and_levels_are_where_the_output_has_these_values(flow, view):
    """A linear output is linear on the grid too, so that a tenth of a unit is all that is lost."""
    drawn, places = View(window_around(flow.problem)), places_on(flow)
    lost, seen = 0.1 * drawn.window.width / SIDE, {"regions": 0, "levels": 0}
    for frame, vector, margin in zip(
        view["frames"][:-1], flow.vectors[places], flow.margin[places], strict=True
    ):
        for name, path, level in (
            ("regions", frame["regions"][0], 0.0),
            ("levels", frame["levels"], margin),
        ):
            for loop in loops(path):
                ends = np.roll(loop, -1, axis=0)
                along = np.linspace(loop, ends, 40).reshape(-1, 2)
                points = plane_of(drawn, along[inside(along)])
                np.testing.assert_allclose(np.abs(points @ vector), level, atol=lost)
                seen[name] += len(points)
    assert min(seen.values()) > 1000


def test_the_region_holds_what_the_network_labels_positive(flow, view, reference):
    drawn, x = View(window_around(flow.problem)), flow.problem.dataset.x
    paths = loops(view["frames"][-1]["regions"][0])
    assert len(paths) == 1
    held = Line(paths[0]).contains_points(drawn.points(x))
    np.testing.assert_array_equal(held, x @ reference.direction > 0)
    assert 0 < held.sum() < len(x)


def test_no_perturbed_point_lies_between_the_levels_and_support_points_lie_on_them(
    flow, view, reference
):
    drawn = View(window_around(flow.problem))
    outputs = np.abs(plane_of(drawn, view["frames"][-1]["moved"]) @ reference.direction)
    lost = 0.1 * drawn.window.width / SIDE
    assert np.all(outputs > reference.margin - lost)
    pushing = np.array(view["frames"][-1]["sizes"]) > 0
    np.testing.assert_array_equal(pushing, reference.multipliers > 1e-8)
    np.testing.assert_allclose(outputs[pushing], reference.margin, atol=lost)
    assert view["frames"][-1]["pushing"] == f"{pushing.sum()} of {len(pushing)}"


def test_places_go_from_the_start_to_the_end_evenly_in_log_time(flow):
    places = places_on(flow)
    assert places[0] == 0 and places[-1] == len(flow) - 1
    assert np.all(np.diff(places) > 0)
    # No saved point is left out where the slider makes a step of more than its share.
    log_time = flow.log1p_time / np.log(10)
    near = places[(log_time[places] <= 16) & (log_time[places] > 0.5)]
    steps, share = np.diff(log_time[near]), 16 / 40
    assert len(steps) > 5
    assert np.all(np.diff(near)[steps > 2 * share] == 1)


class Parser(HTMLParser):
    """What a page holds, and what it would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched, self.scripts, self.slider, self.ids, self.kind = [], [], {}, [], ""

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.fetched += [found[name] for name in ("src", "href") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "input":
            self.slider = found
        self.kind = found.get("type", "text/javascript") if tag == "script" else ""

    def handle_data(self, data):
        if self.kind:
            self.scripts.append((self.kind, data))

    def handle_endtag(self, tag):
        self.kind = ""


def test_the_page_stands_alone(flow, tmp_path):
    path = report.explorer(flow, tmp_path / "plane")
    assert path == tmp_path / "plane.html"
    text = path.read_text(encoding="utf-8")
    page = Parser()
    page.feed(text)
    assert not page.fetched and "http" not in text
    assert path.stat().st_size < 2**19
    frames = json.loads(next(data for kind, data in page.scripts if kind == "application/json"))
    assert len(frames) == int(page.slider["max"]) + 1 == len(places_on(flow))
    assert page.slider["type"] == "range" and page.slider["aria-valuetext"]
    assert f'<label for="{page.slider["id"]}">' in text
    assert len(page.ids) == len(set(page.ids))
    # What JavaScript sets is there to be set, and the page shows the end without it.
    assert f'd="{frames[-1]["regions"][0]}"' in text
    assert text.count('class="moved"') == 1 + len(flow.problem.dataset)


def shown_in_browser(browser, page, profile, fragment=""):
    """The page's document as its script left it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    run = subprocess.run(
        [browser, *options, "--virtual-time-budget=2000", "--dump-dom", page.as_uri() + fragment],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def drawn(text, tag, kind, *names):
    """Attributes of every such element of that class that has them, in the order of the page."""
    found = []
    for element in re.findall(rf'<{tag} [^>]*class="{kind}"[^>]*>', text):
        has = dict(re.findall(r'([\w-]+)="([^"]*)"', element))
        if set(names) <= set(has):
            found.append(tuple(has[name] for name in names))
    return found


def numbers(rows):
    return [[float(value) for value in row] for row in rows]


@pytest.mark.slow
def test_the_script_shows_the_frame_of_the_slider(flow, view, tmp_path):
    """By the address, and by moving the slider; every drawn part is that of the frame."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    page = report.explorer(flow, tmp_path / "plane")
    written = page.read_text(encoding="utf-8")
    frames = json.loads(re.search(r'"application/json">(.*?)</script>', written, re.S)[1])
    moving = (
        "<script>addEventListener('load', function () {"
        "var slider = document.querySelector('input'); slider.value = 7;"
        "slider.dispatchEvent(new Event('input')); });</script></body>"
    )
    moved = tmp_path / "moved.html"
    moved.write_text(written.replace("</body>", moving), encoding="utf-8")
    middle, last = round(0.5 * (len(frames) - 1)), len(frames) - 1
    for path, fragment, asked in ((page, "", last), (page, "#t=0.5", middle), (moved, "", 7)):
        text = shown_in_browser(browser, path, tmp_path / f"profile-{asked}", fragment)
        frame = frames[asked]
        for value in ("clock", "loss", "margin", "pushing"):
            assert f'data-value="{value}">{frame[value]}<' in text
        assert f'aria-valuetext="{frame["clock"]}, margin {frame["margin"]}"' in text
        assert drawn(text, "path", "region", "d") == [(d,) for d in frame["regions"]]
        assert drawn(text, "path", "levels", "d")[0] == (frame["levels"],)
        assert numbers(drawn(text, "line", "attack", "x2", "y2")) == frame["moved"]
        assert numbers(drawn(text, "circle", "moved", "cx", "cy")) == frame["moved"]
        assert numbers(drawn(text, "circle", "push", "cx", "cy", "r")) == [
            [*example["at"], ring]
            for example, ring in zip(view["examples"], frame["sizes"], strict=True)
        ]
        place = re.search(r'class="now axis"[^>]* transform="translate\(([\d.]+),0\)"', text)[1]
        assert float(place) == frame["place"]


def test_of_classes_the_largest_output_has_the_region():
    rng = np.random.default_rng(0)
    dataset = gflow.Dataset(rng.normal(size=(9, 2)), np.arange(9) % 3)
    network = networks.mlp((2, 4, 3), power=2)
    problem = gflow.Problem(
        network, dataset, loss=losses.logistic(), perturbation=perturbations.fgm(0.1)
    )
    params = network.init(0)
    flow = gflow.descend(problem, params, optax.sgd(0.1), num_steps=3)
    window = window_around(problem)
    found = heights(problem, flow.layout, flow.vectors[-1:], window)[0]
    grid = np.stack(np.meshgrid(*window.axes), axis=-1).reshape(-1, 2)
    direction = jax.tree.map(jnp.asarray, flow.direction)
    outputs = jax.vmap(network.apply, (None, 0))(direction, jnp.asarray(grid))
    outputs = np.asarray(outputs).reshape(found.shape[1], found.shape[2], 3)
    np.testing.assert_array_equal(found.argmax(axis=0), outputs.argmax(axis=-1))
    assert np.all((found > 0).sum(axis=0) <= 1)
    ordered = np.sort(outputs, axis=-1)
    np.testing.assert_allclose(found.max(axis=0), ordered[..., 2] - ordered[..., 1], atol=1e-14)
    drawn = view_of(flow, None)
    assert len(drawn["frames"][-1]["regions"]) == len(drawn["labels"]) == 3
    axes = report.plot_plane(problem, params)
    assert len(axes.get_legend_handles_labels()[1]) == 3


def test_plot_plane_draws_the_examples_and_where_they_go(flow, reference):
    axes = report.plot_plane(flow.problem, flow.layout.unflatten(reference.direction))
    x, y = flow.problem.dataset.x, flow.problem.dataset.y
    marked = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert [len(line.get_xdata()) for line in marked] == [np.sum(y > 0), np.sum(y < 0)]
    moved = np.array([line.get_xydata()[1] for line in axes.lines if line not in marked])
    expected = x - RADIUS * y[:, None] * reference.direction
    np.testing.assert_allclose(np.sort(moved, axis=0), np.sort(expected, axis=0), atol=1e-12)


def test_what_cannot_be_shown_is_refused(flow, tmp_path, own_words):
    path = tmp_path / "page.html"
    with pytest.raises(TypeError, match=r"`report.explorer\(trajectory, path\)`.* no trajectory"):
        report.explorer("run.npz", path)
    with pytest.raises(TypeError, match=r"`report.explorer\(limit=3\)`"):
        report.explorer(flow, path, limit=3)
    with pytest.raises(ValueError, match="without its problem"):
        report.explorer(dataclasses.replace(flow, problem=None), path)
    deep = gflow.Problem(
        networks.linear(3), gflow.datasets.gaussian(6, 3), loss=losses.exponential()
    )
    with pytest.raises(ValueError, match="examples of 2 inputs, not of 3"):
        report.explorer(dataclasses.replace(flow, problem=deep), path)
    with pytest.raises(ValueError, match="examples of 2 inputs, not of 3"):
        report.plot_plane(deep, np.ones(3))
    assert not path.exists()


@pytest.mark.slow
def test_a_limit_ends_the_slider_and_one_that_was_not_reached_does_not(flow, reference, tmp_path):
    limit = gflow.find_limit(flow.problem, flow)
    text = report.explorer(flow, tmp_path / "a", limit=limit).read_text(encoding="utf-8")
    assert "the limit, t = ∞" in text and f"{reference.margin:#.4g}" in text
    failed = dataclasses.replace(limit, result=RESULTS.seconds_spent)
    text = report.explorer(flow, tmp_path / "b", limit=failed).read_text(encoding="utf-8")
    assert "t = ∞" not in text and "No limit is shown: " in text
    other = gflow.Problem(flow.problem.network, flow.problem.dataset, loss=losses.exponential())
    with pytest.raises(ValueError, match="limit of another problem"):
        report.explorer(dataclasses.replace(flow, problem=other), tmp_path / "c", limit=limit)
