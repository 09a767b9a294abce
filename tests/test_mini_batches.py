"""Mini-batches: which examples, with what factor, against loops in NumPy."""

import inspect
import json

import numpy as np
import optax
import pytest
from _two_layer import flat, loss_gradient, shaped

import gflow
from gflow import datasets, losses, networks, optimizers
from gflow._batches import NOBODY, Batches
from gflow.datasets import Dataset
from gflow.perturbations import fgm, pgd

# Seven examples, so that batches of three leave one over.
_generator = np.random.default_rng(3)
DATA = Dataset(_generator.normal(size=(7, 3)), np.array([1.0, -1, 1, 1, -1, 1, 1]))
RADIUS = 0.1
PROBLEM = gflow.Problem(
    networks.mlp((3, 4, 1), power=2), DATA, loss=losses.exponential(), perturbation=fgm(RADIUS)
)
START = (_generator.normal(size=(4, 3)) / 2, _generator.normal(size=(1, 4)) / 2)
STEP_SIZE, NUM_STEPS = 0.004, 12
SGD = optax.sgd(STEP_SIZE)
CLASSES = Dataset(_generator.normal(size=(7, 3)), np.array([0, 1, 2, 0, 1, 2, 0]))

unchecked_descend = inspect.unwrap(gflow.descend)


def descended(**options):
    return gflow.descend(PROBLEM, START, SGD, num_steps=NUM_STEPS, save=None, **options)


def points_of(run):
    return np.exp(run.log_norm)[:, None] * run.vectors


def examples(indices):
    """Some examples without the checks of a data set: a class may be missing."""
    return DATA.take(indices[indices >= 0])


# Which examples


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_every_shuffled_epoch_uses_every_example_once(batch_size):
    batches = Batches(7, batch_size, "shuffled", seed=4)
    table = batches.draw(5).reshape(5, -1)
    orders = [row[row != NOBODY] for row in table]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(7))
    assert len({tuple(order) for order in orders}) > 1
    assert batches.ragged == (batch_size == 3)
    # Only the last batch of an epoch is smaller.
    assert np.all(table[:, :7] >= 0) and np.all(table[:, 7:] == NOBODY)


@pytest.mark.parametrize("sampling", ["shuffled", "replacement"])
def test_how_the_draws_are_divided_makes_no_difference(sampling):
    whole = Batches(7, 3, sampling, seed=4).draw(6)
    batches = Batches(7, 3, sampling, seed=4)
    np.testing.assert_array_equal(np.concatenate([batches.draw(k) for k in (1, 2, 3)]), whole)
    assert np.any(Batches(7, 3, sampling, seed=5).draw(6) != whole)


def test_draws_with_replacement_are_uniform():
    table = Batches(7, 3, "replacement", seed=0).draw(4000)
    assert table.shape == (12_000, 3) and table.min() == 0
    counts = np.bincount(table.ravel(), minlength=7)
    # Binomial with standard deviation 66: five of them.
    np.testing.assert_allclose(counts, 36_000 / 7, atol=5 * 66.4)
    assert any(len(set(row)) < 3 for row in table)


@pytest.mark.parametrize("sampling", ["shuffled", "replacement"])
def test_batches_of_a_data_set_are_those_of_descent(sampling):
    table = Batches(7, 3, sampling, seed=2).draw(2)
    found = list(DATA.batches(3, num_epochs=2, sampling=sampling, seed=2))
    assert len(found) == len(table) == 6
    for indices, batch in zip(table, found, strict=True):
        np.testing.assert_array_equal(batch.x, DATA.x[indices[indices >= 0]])
        np.testing.assert_array_equal(batch.y, DATA.y[indices[indices >= 0]])
        assert batch.num_classes == 1 and batch.binary


def test_a_part_of_the_classes_keeps_their_number():
    part = CLASSES.take([1, 4])
    assert part.num_classes == 3 and set(part.y) == {1} and part.y.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        part.x[0] = 1.0
    with pytest.raises(IndexError, match=r"`Dataset\.take"):
        CLASSES.take([7])


NO_INDICES = {
    "a mask": (np.arange(6) < 2, TypeError, "flatnonzero"),
    "halves": ([0.5], TypeError, "expected integers"),
    "none": ([], ValueError, "no indices"),
    "one number": (3, ValueError, r"`take\(\[index\]\)`"),
    "a table": ([[0, 1]], ValueError, r"shape \(1, 2\)"),
    "a slice": (slice(2), TypeError, "expected integers"),
    "masked": (np.ma.masked_array([0, 1], [True, False]), ValueError, "masked"),
}


@pytest.mark.parametrize(("indices", "error", "words"), NO_INDICES.values(), ids=NO_INDICES)
def test_what_is_no_list_of_indices_takes_nothing(indices, error, words):
    with pytest.raises(error, match=words) as refusal:
        CLASSES.take(indices)
    assert "`Dataset.take(indices)`" in str(refusal.value)


# Their gradients


@pytest.mark.parametrize("sampling", ["shuffled", "replacement"])
@pytest.mark.parametrize("mean", [False, True])
def test_steps_on_batches_are_a_loop_in_numpy(sampling, mean):
    """Each with its own perturbations, and n / B times the gradient of its sum."""
    run = descended(batch_size=3, sampling=sampling, seed=1, mean=mean)
    point, times = flat(START), [0.0]
    points = [point]
    for indices in Batches(7, 3, sampling, seed=1).draw(4)[:NUM_STEPS]:
        part = examples(indices)
        gradient, _ = loss_gradient(shaped(point, START), part, RADIUS)
        factor = 1 / len(part) if mean else 7 / len(part)
        point = point - STEP_SIZE * factor * gradient
        points.append(point)
        # An example that no neuron sees has no gradient, and its step no length.
        times.append(times[-1] + STEP_SIZE * (1 / 7 if mean else 1) * np.any(gradient))
    np.testing.assert_allclose(points_of(run), points, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.expm1(run.log1p_time), times, rtol=1e-10, atol=1e-14)
    # What is recorded is the loss of all examples.
    expected = np.log(loss_gradient(shaped(points[-1], START), DATA, RADIUS)[1])
    assert run.log_loss[-1] == pytest.approx(expected, abs=1e-10)
    assert run.settings["batch_size"] == 3 and run.settings["sampling"] == sampling
    json.dumps(run.to_dict(), allow_nan=False)


def test_a_batch_of_all_examples_is_the_full_gradient():
    full, batch = descended(), descended(batch_size=7)
    np.testing.assert_allclose(batch.vectors, full.vectors, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(batch.log1p_time, full.log1p_time, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_step_on_the_mean_is_n_times_shorter(batch_size):
    total = descended(batch_size=batch_size)
    longer = optax.sgd(7 * STEP_SIZE)
    options = dict(num_steps=NUM_STEPS, save=None, mean=True, batch_size=batch_size)
    mean = gflow.descend(PROBLEM, START, longer, **options)
    np.testing.assert_allclose(points_of(mean), points_of(total), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(mean.log1p_time, total.log1p_time, rtol=1e-11, atol=1e-14)


def test_the_gradient_of_a_batch_is_the_full_one_on_average():
    """Over the seven batches of one example: one step from the start with each."""
    steps = []
    for seed in range(60):
        run = gflow.descend(PROBLEM, START, SGD, num_steps=1, batch_size=1, seed=seed)
        steps.append(flat(run.params) - flat(START))
    found = {tuple(np.round(step, 12)) for step in steps}
    assert len(found) == 6  # two examples that no neuron sees leave the weights as they are
    expected = -STEP_SIZE * loss_gradient(START, DATA, RADIUS)[0]
    np.testing.assert_allclose(np.sum(list(found), axis=0) / 7, expected, atol=1e-11)


def test_the_log_loss_of_a_batch_knows_no_factor():
    """`grad log(c Loss)` is that of every c."""
    options = dict(batch_size=3, objective="log_loss", seed=1)
    run, mean = descended(**options), descended(**options, mean=True)
    np.testing.assert_allclose(mean.vectors, run.vectors, rtol=1e-12, atol=1e-14)
    indices = Batches(7, 3, "shuffled", seed=1).draw(1)[0]
    gradient, loss = loss_gradient(START, examples(indices), RADIUS)
    expected = flat(START) - STEP_SIZE * gradient / loss
    np.testing.assert_allclose(points_of(run)[1], expected, rtol=1e-12)
    assert np.expm1(run.log1p_time[1]) == pytest.approx(STEP_SIZE / (loss * 7 / 3), rel=1e-11)


def test_batches_without_one_of_the_classes():
    """Every batch of one example is such; with classes, with an attack that starts at random."""
    attack = pgd(0.1, num_steps=2, random_start=0, order=2)
    for size in (1, 2):
        problem = gflow.Problem(
            networks.linear(3, num_outputs=3), CLASSES, loss=losses.logistic(), perturbation=attack
        )
        run = gflow.descend(
            problem, (START[0][:3],), optax.sgd(0.05), num_steps=60, batch_size=size, save=4
        )
        assert run.successful and run.log_loss[-1] < run.log_loss[0]


def test_a_schedule_counts_steps():
    """A step size that is 0 from the third step on."""
    schedule = optax.piecewise_constant_schedule(STEP_SIZE, {2: 0.0})
    run = gflow.descend(PROBLEM, START, optax.sgd(schedule), num_steps=6, batch_size=3, save=None)
    moved = np.linalg.norm(np.diff(points_of(run), axis=0), axis=1)
    assert np.all(moved[:2] > 0) and np.all(moved[2:] == 0)
    assert np.expm1(run.log1p_time[-1]) == pytest.approx(2 * STEP_SIZE, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "1 to 7 examples"),
        ({"batch_size": 8}, ValueError, "batch_size=8"),
        ({"batch_size": 2.0}, TypeError, r"batch_size=2\.0"),
        ({"batch_size": 2, "seed": -1}, ValueError, "not negative"),
        ({"batch_size": 2, "seed": 0.5}, TypeError, r"seed=0\.5"),
        ({"batch_size": 2, "sampling": "random"}, ValueError, "'shuffled' or 'replacement'"),
        ({"optimizer": optimizers.loss_based()}, ValueError, "made for the objective 'log_loss'"),
    ],
)
def test_impossible_batches_are_refused(options, error, words):
    arguments = {"optimizer": SGD, "num_steps": 3} | options
    with pytest.raises(error, match=words):
        unchecked_descend(PROBLEM, START, **arguments)


# The steps of Lyu & Li


def loss_based_in_numpy(step_size, num_steps):
    """Points, and whether each step was a success."""
    point, alpha = flat(START), step_size
    points, successes = [point], []
    for _ in range(num_steps):
        gradient, loss = loss_gradient(shaped(point, START), DATA, RADIUS)
        tried = point - alpha / loss * gradient
        success = loss_gradient(shaped(tried, START), DATA, RADIUS)[1] <= loss
        point, alpha = (tried, alpha * 2**0.2) if success else (point, alpha * 2**-0.1)
        points.append(point)
        successes.append(success)
    return np.array(points), np.array(successes)


@pytest.mark.parametrize("objective", ["log_loss", "loss"])
def test_loss_based_steps_are_a_loop_in_numpy(objective):
    optimizer = optimizers.loss_based(3.0, objective=objective)
    run = gflow.descend(PROBLEM, START, optimizer, num_steps=60, objective=objective, save=None)
    points, successes = loss_based_in_numpy(3.0, 60)
    assert 0 < successes.sum() < 60
    np.testing.assert_allclose(points_of(run), points, rtol=1e-8, atol=1e-9)
    assert np.all(np.diff(run.log_loss) <= 1e-15)
    # What is rolled back keeps the weights to the last bit, and takes no time.
    failed = np.flatnonzero(~successes)
    np.testing.assert_array_equal(run.vectors[failed + 1], run.vectors[failed])
    np.testing.assert_array_equal(run.log_norm[failed + 1], run.log_norm[failed])
    np.testing.assert_array_equal(run.log1p_time[failed + 1], run.log1p_time[failed])


def test_loss_based_steps_go_where_the_loss_has_underflowed():
    """A loss of e^-4600 = 1e-2000 is nothing special, and margins go on to rise."""
    data = datasets.gaussian(8, 3, gap=0.5, seed=1)
    problem = gflow.Problem(networks.linear(3), data, loss=losses.exponential())
    run = gflow.descend(
        problem,
        (np.array([[0.3, -0.2, 0.1]]),),
        optimizers.loss_based(0.1),
        num_steps=800,
        objective="log_loss",
    )
    assert run.log_loss[-1] < -4600 and run.successful
    assert np.all(np.isfinite(run.log1p_time)) and run.log1p_time[-1] > 4000
    assert np.all(np.diff(run.log_loss) <= 0)
    assert run.margin[-1] > run.margin[10]


def test_equal_optimizers_are_compiled_once():
    assert optimizers.loss_based(0.3) == optimizers.loss_based(0.3) != optimizers.loss_based(0.2)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [((0.0,), {}, "must be positive"), ((0.1,), {"objective": "mean"}, "'loss' or 'log_loss'")],
)
def test_impossible_loss_based_steps(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(optimizers.loss_based)(*arguments, **options)
