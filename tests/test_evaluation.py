"""Trained under x attacked by: margins and accuracies against closed forms of linear networks."""

import csv
import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import gflow
from gflow import losses, networks, perturbations
from gflow.commands.display import print_matrix
from gflow.report import tables
from gflow.report.answer import answer, comparisons, in_numbers, reading
from gflow.report.end import End, end_of, load_end
from gflow.report.evaluation import Ball, evaluate, largest, load_evaluation
from gflow.report.images import portraits
from gflow.report.picture import matrices
from gflow.report.record import Record, Results
from gflow.report.spread import seeded, spreads, unseeded

ATTACKS = {
    "clean": perturbations.clean(),
    "fgm": perturbations.fgm(0.1),
    "fgsm": perturbations.fgsm(0.05),
    "l1": perturbations.fgm(0.2, order=1),
    "l3": perturbations.fgm(0.1, order=3),
}
ORDERS = {
    "clean": (0.0, 2),
    "fgm": (0.1, 2),
    "fgsm": (0.05, np.inf),
    "l1": (0.2, 1),
    "l3": (0.1, 3),
}
WHOLE = gflow.datasets.gaussian(30, 3, gap=0.6, seed=2)
DATA, HELD_OUT = (
    gflow.Dataset(WHOLE.x[chosen], WHOLE.y[chosen]) for chosen in (slice(12), slice(12, None))
)


def problem(name):
    network = networks.linear(3)
    return gflow.Problem(network, DATA, loss=losses.logistic(), perturbation=ATTACKS[name])


def end(vector, name, limit=None):
    run = Record("net", name, "", True, {}, 0.0)
    return End(run, vector / np.linalg.norm(vector), limit)


@pytest.fixture(scope="module")
def found():
    flow = gflow.integrate(
        problem("fgm"), (jnp.ones((1, 3)),), until=gflow.Until(log_loss=0.0), tolerance=1e-4
    )
    limits = {"fgm": np.array([0.6, 0.0, 0.8]), "fgsm": None}
    ends = {
        name: end(np.array([1.0, 2.0, -0.5]) + i, name, limit)
        for i, (name, limit) in enumerate(limits.items())
    }
    problems = {name: problem(name) for name in ("clean", *limits)}
    trajectories = dict.fromkeys(limits, flow)
    return ends, flow, evaluate("net", problems, ends, trajectories, ATTACKS, HELD_OUT)


def margins(data, vector, name):
    """y w.x - eps |w|_q with 1/p + 1/q = 1."""
    radius, order = ORDERS[name]
    dual = {1: np.inf, np.inf: 1}.get(order) or order / (order - 1)
    return data.y * (data.x @ vector) - radius * np.linalg.norm(vector, dual)


def test_rows_are_the_runs_that_ended_and_columns_all_attacks(found):
    _, _, evaluation = found
    assert evaluation.rows == ["fgm", "fgsm"]
    strong = ["strong l2 0.1", "strong linf 0.05", "strong l1 0.2"]
    assert evaluation.columns == [*ATTACKS, *strong] and evaluation.strong == strong


def test_margins_are_those_of_linear_networks(found):
    ends, _, evaluation = found
    for i, row in enumerate(evaluation.rows):
        for j, column in enumerate(ATTACKS):
            expected = margins(DATA, ends[row].stopped, column).min()
            np.testing.assert_allclose(evaluation.stopped[i, j], expected, atol=1e-12)
    for j, column in enumerate(ATTACKS):
        expected = margins(DATA, ends["fgm"].limit, column)
        np.testing.assert_allclose(evaluation.limit[0, j], expected.min(), atol=1e-12)
        right = np.mean(margins(HELD_OUT, ends["fgm"].limit, column) > 0)
        assert evaluation.accuracy[0, j] == right
    # Without a limit there is nothing to tell of one.
    assert np.isnan(evaluation.limit[1]).all() and np.isnan(evaluation.accuracy[1]).all()


def test_a_flow_that_did_not_come_to_its_target_has_no_margin_there(found):
    ends, flow, _ = found
    short = gflow.integrate(
        problem("fgm"),
        (jnp.ones((1, 3)),),
        until=gflow.Until(log_loss=-9.0),
        max_steps=1,
        throw=False,
    )
    problems = {name: problem(name) for name in ends}
    alone = evaluate("net", problems, ends, {"fgm": flow, "fgsm": short}, ATTACKS, None)
    assert np.isfinite(alone.stopped[0]).all() and np.isnan(alone.stopped[1]).all()


def test_no_attack_in_the_ball_beats_the_closed_form_of_a_linear_network(found):
    _, _, evaluation = found
    for strong, weak in (("strong l2 0.1", "fgm"), ("strong linf 0.05", "fgsm")):
        columns = [evaluation.columns.index(name) for name in (strong, weak)]
        one, other = evaluation.stopped[:, columns].T
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_margins_along_the_flow_are_those_of_its_points(found):
    _, flow, evaluation = found
    points, curves = evaluation.points[0], evaluation.curves[0]
    assert points[0] == 0 and points[-1] == len(flow) - 1
    np.testing.assert_allclose(curves[:, 0], flow.clean_margin[points], atol=1e-12)
    np.testing.assert_allclose(curves[:, 1], flow.margin[points], atol=1e-12)


@pytest.mark.parametrize("rivals", ["worst", "runner_up", "each"])
def test_several_classes_are_attacked_as_in_training(rivals):
    generator = np.random.default_rng(0)
    data = gflow.Dataset(generator.normal(size=(12, 3)), np.arange(12) % 3)
    network, attack = networks.linear(3, num_outputs=3), perturbations.fgm(0.4)
    options = {"loss": losses.logistic(), "rivals": rivals}
    trained = gflow.Problem(network, data, perturbation=attack, **options)
    # The class of the longest weights is the worst rival where another one is the runner-up.
    start = (np.asarray(network.init(20)[0]) * np.array([[1.0], [1.0], [5.0]]),)
    flow = gflow.integrate(trained, start, until=gflow.Until(time=1e-4), tolerance=1e-4)
    # Clean training comes first, whose problem has no attack and so no rivals.
    clean = gflow.Problem(network, data, **options)
    problems = {"clean": clean, "fgm": trained}
    ends = {
        name: End(Record("net", name, "", True, {}, 0.0), flow.vectors[-1]) for name in problems
    }
    flows, attacks = dict.fromkeys(problems, flow), {"clean": clean.perturbation, "fgm": attack}
    evaluation = evaluate("net", problems, ends, flows, attacks, None)
    expected = float(np.min(trained.margins(flow.direction)))
    np.testing.assert_allclose(evaluation.stopped[:, 1], expected, rtol=1e-12)
    right = gflow.measures.robust_accuracy(trained, flow.direction)
    assert gflow.measures.robust_accuracy(clean, flow.direction, attack, rivals=rivals) == right
    other = gflow.Problem(network, data, perturbation=attack, loss=losses.logistic())
    told_apart = float(np.min(other.margins(flow.direction))) != pytest.approx(expected, rel=1e-3)
    assert told_apart == (rivals == "runner_up")


def test_it_reads_back(found, tmp_path):
    _, _, evaluation = found
    evaluation.save(tmp_path / "e.npz")
    again = load_evaluation(tmp_path / "e.npz")
    for field in dataclasses.fields(evaluation):
        one, other = getattr(evaluation, field.name), getattr(again, field.name)
        if field.name in ("curves", "points"):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other
    end(np.ones(3), "fgm", np.ones(3)).save(tmp_path / "end.npz")
    np.testing.assert_array_equal(load_end(tmp_path / "end.npz").limit, np.ones(3))
    for load in (load_end, load_evaluation):
        (tmp_path / "bad.npz").write_bytes(b"no")
        with pytest.raises(ValueError):
            load(tmp_path / "bad.npz")
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "absent.npz")
    with pytest.raises(ValueError):
        load_evaluation(tmp_path / "end.npz")


def test_a_run_without_limit_has_an_end_without_one(found):
    _, flow, _ = found
    run = Record("net", "fgm", "", False, {}, 0.0)
    assert end_of(flow, None, run).limit is None
    np.testing.assert_array_equal(end_of(flow, None, run).stopped, flow.vectors[-1])


def test_equals_are_marked_together():
    values = np.array([[1.0, np.nan], [1.0 + 1e-6, 2.0], [0.5, 3.0], [np.nan, -1.0]])
    expected = [[True, False], [True, False], [False, True], [False, False]]
    np.testing.assert_array_equal(largest(values), expected)


def with_margins(evaluation, values):
    balls = {"clean": None, "fgm": Ball(2.0, 0.1), "pgd": Ball(2.0, 0.1), "s": Ball(2.0, 0.1)}
    return dataclasses.replace(
        evaluation,
        rows=["clean", "fgm", "pgd"],
        columns=["clean", "fgm", "pgd", "s"],
        balls=balls,
        curves=[np.zeros((1, 3))] * 3,
        limit=np.array([[0.0] * 3 + [value] for value in values]),
        accuracy=np.array([[1.0] * 3 + [value] for value in (0.5, 0.25, 0.75)]),
        stopped=np.array([[0.0] * 3 + [value] for value in (1.0, 3.0, 2.0)]),
    )


@pytest.mark.parametrize(
    ("values", "change"),
    [
        ((2.0, 1.0, 3.0), 0.5),
        ((2.0, 1.0, 1.5), -0.25),
        ((2.0, 1.0, 2.0 + 1e-5), 0.0),
        ((-1.0, 1.0, 2.0), np.inf),
        ((-1.0, -2.0, -3.0), np.nan),
        ((2.0, np.nan, 3.0), 0.5),
    ],
)
def test_clean_training_is_compared_with_the_best_in_the_ball(found, values, change):
    evaluation = with_margins(found[2], values)
    (one,) = comparisons(evaluation, evaluation.limit)
    assert one.change == pytest.approx(change, nan_ok=True)
    assert (one.clean, one.ball) == (values[0], "s")


def test_without_clean_training_there_is_no_comparison(found):
    assert comparisons(found[2], found[2].stopped) == []
    evaluation = with_margins(found[2], (np.nan, 1.0, 2.0))
    assert comparisons(evaluation, evaluation.limit) == []


def test_the_answer_names_the_result(found):
    record = Record(
        "net", "fgm", "", True, {"limit_stationarity": 2e-15}, 0.0, words={"basin": "confirmed"}
    )
    settings = {"limit": {"enabled": True}, "until": {"log_loss": -10.0}}
    results = Results(settings, {}, 3, False, 1.0, "", [record] * 3)
    told = answer(results, [with_margins(found[2], (2.0, 1.0, 3.0))] * 2)
    assert "in 2 of 2 comparisons at the limit (+50.0 %)" in told
    assert "in 2 of 2 comparisons at equal loss e⁻¹⁰ (+200.0 %)" in told
    assert "The limits of 3 of 3 runs were found (stationarity at most 2e-15" in told
    pair = [with_margins(found[2], (2.0, 1.0, value)) for value in (2.0, 1.5)]
    assert "in 0 of 2 comparisons at the limit (1 equal; 1 smaller, -25.0 %)" in answer(
        results, pair
    )
    assert "in 0 of 1 comparisons at the limit (1 with no margin in either)" in answer(
        results, [with_margins(found[2], (-2.0, -1.0, -3.0))]
    )
    assert answer(results, []).startswith("The limits of 3 of 3 runs were found")


def test_a_flow_without_its_limit_is_no_limit_found():
    """Of networks that are too large for one the flow alone is followed."""
    settings = {"limit": {"enabled": True}, "until": {"log_loss": -10.0}}
    with_limit = Record(
        "net", "fgm", "", True, {"limit_stationarity": 2e-15}, 0.0, words={"basin": "confirmed"}
    )
    without = Record("net", "fgm", "", True, {}, 0.0)
    told = [
        answer(Results(settings, {}, 3, False, 1.0, "", runs), [])
        for runs in ([with_limit, without, without], [without] * 3)
    ]
    assert told[0].startswith("The limits of 1 of 3 runs were found (stationarity at most 2e-15")
    assert told[1].startswith("The limits of 0 of 3 runs were found; ")
    assert "of 2 the flow came to its end" in told[0]


def test_the_numbers_behind_the_answer(found):
    settings = {"limit": {"enabled": True}, "until": {"log_loss": -10.0}}
    results = Results(settings, {}, 3, False, 1.0, "", [])
    evaluation = with_margins(found[2], (2.0, 1.0, 3.0))
    assert in_numbers(results, [evaluation]) == {
        "rows": [
            {
                "name": ("net", "s"),
                "trained": "pgd",
                "margins": ("2.000", "3.000"),
                "changes": ["+50.0 %", "+200.0 %"],
                "accuracies": "50.0 → 75.0",
            }
        ],
        "places": ["at the limit", "at equal loss e⁻¹⁰"],
        "accuracies": True,
    }
    # Without limits the margins are those where the flows stopped.
    (row,) = in_numbers(results, [with_margins(found[2], [np.nan] * 3)])["rows"]
    assert (row["trained"], row["margins"]) == ("fgm", ("1.000", "3.000"))
    assert in_numbers(results, [])["rows"] == []


def test_the_tables_of_numbers_hold_every_digit(found):
    evaluation = with_margins(found[2], (2.0, 1.0, 1 / 3))
    limit, stopped = csv.DictReader(tables.comparisons([evaluation]).splitlines())
    assert (limit["point"], stopped["point"]) == ("limit", "stopped")
    assert (limit["attacked_by"], limit["trained_under"]) == ("s", "fgm")
    assert float(limit["change"]) == -0.5
    assert [float(limit[f"accuracy_trained_{how}"]) for how in ("clean", "under")] == [0.5, 0.25]
    rows = list(csv.DictReader(tables.matrix([evaluation], [], "limit").splitlines()))
    assert [row["trained_under"] for row in rows] == evaluation.rows
    assert [float(row["s"]) for row in rows] == [2.0, 1.0, 1 / 3]


def test_the_answer_says_what_it_does_not_tell(found):
    settings = {"limit": {"enabled": True}, "until": {"log_loss": -10.0}}
    results = Results(settings, {}, 3, False, 1.0, "", [])
    larger, equal = (with_margins(found[2], (2.0, 1.0, best)) for best in (3.0, 2.0))
    assert "one start" in reading(results, [larger])
    assert "No change" in reading(results, [equal])
    assert "No change" not in reading(results, [larger])


def seeds_of(evaluation, values):
    """One network from as many seeds as there are values, the same matrix times each of them."""
    return [
        dataclasses.replace(
            evaluation,
            network=f"net, seed {seed}",
            limit=value * evaluation.limit,
            stopped=value * evaluation.stopped,
        )
        for seed, value in enumerate(values)
    ]


def test_over_seeds_there_is_a_mean_and_a_range(found):
    one = found[2]
    (spread,) = spreads(seeds_of(one, (1.0, 2.0, 6.0)), {"seed": [0, 1, 2]})
    assert (spread.network, spread.rows, spread.columns) == ("net", one.rows, one.columns)
    values = spread.of("stopped")
    np.testing.assert_allclose(values.mean, 3 * one.stopped)
    np.testing.assert_allclose(values.most - values.least, 5 * np.abs(one.stopped))
    assert (values.count == 3).all()
    # Where no run came to a limit there is no number, and no warning.
    limit = spread.of("limit")
    np.testing.assert_array_equal(np.isnan(limit.mean), np.isnan(one.limit))
    assert (limit.count[1] == 0).all() and np.isnan(limit.least[1]).all()


def test_a_seed_without_a_row_leaves_it_to_the_others(found):
    one, other = seeds_of(found[2], (1.0, 2.0))
    fewer = dataclasses.replace(
        other, rows=other.rows[1:], limit=other.limit[1:], stopped=other.stopped[1:]
    )
    (spread,) = spreads([one, fewer], {"seed": [0, 1]})
    values = spread.of("stopped")
    np.testing.assert_array_equal(values.count, np.repeat([[1], [2]], len(one.columns), axis=1))
    np.testing.assert_allclose(values.mean, one.stopped * [[1.0], [1.5]])


def test_over_seeds_margins_at_limits_are_not_mixed_with_those_before(found):
    one, other = seeds_of(found[2], (1.0, 2.0))
    other = dataclasses.replace(other, limit=np.full_like(other.limit, np.nan))
    (spread,) = spreads([one, other], {"seed": [0, 1]})
    np.testing.assert_array_equal(spread.shown().mean, one.limit)


@pytest.mark.parametrize("seeds", [0, [3]])
def test_one_seed_has_no_spread(found, seeds):
    assert spreads([found[2]], {"seed": seeds}) == []


def test_a_name_with_a_seed_is_read_back():
    assert unseeded(seeded("a, seed 1", 11), [1, 11]) == "a, seed 1"
    assert unseeded("a, seed 1", [2, 3]) == "a, seed 1"


def test_the_console_shows_the_spread(found):
    console = Console(width=160, record=True, file=io.StringIO())
    print_matrix(console, seeds_of(found[2], (1.0, 2.0)), {"seed": [0, 1]})
    text = console.export_text()
    assert "mean over 2 seeds, ± half of the range" in text and "seed 0" not in text
    limit = found[2].limit[0, 0]
    assert f"{1.5 * limit:#.4g}" in text and f"± {0.5 * abs(limit):.2g}" in text


@pytest.mark.parametrize("planned", [2, 3])
def test_a_mean_over_fewer_seeds_than_asked_for_says_over_how_many(found, planned):
    one, other = seeds_of(found[2], (1.0, 2.0))
    other = dataclasses.replace(other, limit=np.full_like(other.limit, np.nan))
    settings = {"seed": list(range(planned))}
    console = Console(width=160, record=True, file=io.StringIO())
    print_matrix(console, [one, other], settings)
    text = console.export_text()
    # Of one value there is no range.
    assert f"(1 of {planned})" in text and "± 0" not in text and "which the brackets count" in text
    (matrix,) = matrices([one, other], settings)
    known = np.isfinite(one.limit)
    expected = np.where(known, f"(1 of {planned})", "")
    np.testing.assert_array_equal(np.array(matrix.below), expected)
    table = tables.matrix([one, other], spreads([one, other], settings), "limit")
    rows = [row for row in csv.DictReader(io.StringIO(table)) if "seeds with" in row["network"]]
    for row, expected in zip(rows, known, strict=True):
        assert [float(row[column]) for column in one.columns] == expected.tolist()


def test_networks_without_hidden_layers_have_a_portrait():
    weights = np.arange(5.0)[None]
    for bias, seen in ((False, weights[0]), (True, weights[0, :4])):
        network = networks.mlp((len(seen), 1), bias=bias)
        (image,) = portraits(network, (weights,), len(seen))
        np.testing.assert_array_equal(image, seen)
