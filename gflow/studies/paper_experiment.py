"""The experiment of the paper: a ReLU network on MNIST, trained clean, by FGSM and by PGD."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import gflow
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, panels

# As published: radius, steps of PGD and their size, hidden widths, batch size. The small form has a
# narrower first layer.
_RADIUS, _NUM_STEPS, _STEP_SIZE = 16 / 255, 5, 6 / 255
_HIDDEN, _BATCH = (1024, 64), 80
# Not published, and chosen here: the start, normal with standard deviation 1 / sqrt(3 fan_in), that
# of PyTorch's linear layers; the two classes; the step size on the mean loss; the epochs. On MNIST
# steps of 1 with ten classes leave the range of numbers after 30 epochs.
_SCALE, _SEED = 3**-0.5, 0


class _Form(NamedTuple):
    """What the two forms of the study differ in.

    Attributes:
        pair: the digits of the two classes.
        limit: so many images are trained on at most.
        hidden: widths of the hidden layers.
        step, epochs: on the mean loss, and how many, by the number of classes.
        points: of a run, at which the attack is tried.
        separates: whether two classes are trained until all images withstand the attack.
    """

    pair: tuple[int, int]
    limit: int | None
    hidden: tuple[int, ...]
    step: Mapping[int, float]
    epochs: Mapping[int, int]
    points: int
    separates: bool


_SMALL = _Form((3, 8), None, (256, 64), {2: 0.5, 10: 0.5}, {2: 150, 10: 60}, 16, True)
_FULL = _Form((3, 7), 3000, _HIDDEN, {2: 1.0, 10: 0.3}, {2: 80, 10: 40}, 17, False)
# Images of MNIST that the accuracy is told of; and of the digits every fifth.
_HELD_OUT, _EVERY = 1000, 5
# Examples that are attacked at a time, so that the memory is bounded.
_CHUNK = 1000


class _Data(NamedTuple):
    """What is trained on, and what the accuracy is told of."""

    train: Any
    test: Any


class _Curve(NamedTuple):
    """Of one training, at its saved points. Shapes: (s,).

    Attributes:
        epochs: passes through the examples.
        margin: normalized margin under PGD, the smallest of all examples that are trained on.
        right: the share of them whose margin under PGD is positive.
        held_out: the same of the examples held out.
    """

    epochs: np.ndarray
    margin: np.ndarray
    right: np.ndarray
    held_out: np.ndarray


def _measure(small: bool) -> Measurement:
    form = _SMALL if small else _FULL
    findings, curves = [], {}
    for classes in form.epochs:
        data = _digits(form, classes) if small else _mnist(form, classes)
        found = {name: _train(form, data, attack) for name, attack in _attacks().items()}
        findings += _findings(classes, found, separates=form.separates and classes == 2)
        curves[classes] = found
    return Measurement(tuple(findings), {"curves": curves})


def _findings(classes: int, found: Mapping[str, _Curve], *, separates: bool) -> list[Finding]:
    """What the claim says of the ends of three trainings on the same data."""
    clean, findings = found["clean"], []
    for name in ("FGSM", "PGD"):
        one, where = found[name], f"{classes} classes, {name}"
        quantities = [
            ("last margin under PGD, and of clean training", clean.margin[-1], one.margin[-1]),
            ("share that withstands PGD, and of clean training", clean.right[-1], one.right[-1]),
            ("the same of images held out", clean.held_out[-1], one.held_out[-1]),
        ]
        if separates:
            first = one.margin[np.argmax(one.right == 1)]
            quantities += [
                ("share that withstands PGD", 1.0, one.right[-1]),
                ("last margin, and where first all images withstand PGD", first, one.margin[-1]),
            ]
        findings += [
            Finding(f"{where}: {what}", least, value, 0.0, "at least")
            for what, least, value in quantities
        ]
    return findings


def _attacks() -> dict[str, Any]:
    """Under which is trained; the last one is the attack that all are judged by."""
    return {
        "clean": gflow.perturbations.clean(),
        "FGSM": gflow.perturbations.fgsm(_RADIUS),
        "PGD": gflow.perturbations.pgd(_RADIUS, num_steps=_NUM_STEPS, step_size=_STEP_SIZE),
    }


def _digits(form: _Form, classes: int) -> _Data:
    """scikit-learn's digits, every fifth example of a class held out."""
    data = gflow.datasets.digits(**_chosen(form, classes))
    held_out = np.zeros(len(data), bool)
    for label in np.unique(data.y):
        held_out[np.flatnonzero(data.y == label)[::_EVERY]] = True
    return _Data(data.take(np.flatnonzero(~held_out)), data.take(np.flatnonzero(held_out)))


def _mnist(form: _Form, classes: int) -> _Data:
    chosen = _chosen(form, classes)
    pair = gflow.datasets.mnist_pair(limit=form.limit, test_limit=_HELD_OUT, **chosen)
    return _Data(*pair)


def _chosen(form: _Form, classes: int) -> dict[str, Any]:
    if classes == 2:
        return {"positive": form.pair[0], "negative": form.pair[1]}
    return {"classes": range(classes)}


@cache
def _optimizer(step: float) -> Any:
    """One for all runs: another, even of the same kind, would be compiled anew."""
    import optax

    return optax.sgd(step)


def _problem(form: _Form, data: Any, attack: Any) -> Any:
    """With more than two classes the attack lowers the margin against the runner-up."""
    network = gflow.networks.mlp((data.x.shape[1], *form.hidden, data.num_outputs))
    loss = gflow.losses.logistic()
    return gflow.Problem(network, data, loss=loss, perturbation=attack, rivals="runner_up")


def _train(form: _Form, data: _Data, attack: Any) -> _Curve:
    problem = _problem(form, data.train, attack)
    classes = max(data.train.num_classes, 2)
    per_epoch = -(-len(data.train) // _BATCH)
    run = gflow.descend(
        problem,
        problem.network.init(_SEED, scale=_SCALE),
        _optimizer(form.step[classes]),
        num_steps=form.epochs[classes] * per_epoch,
        batch_size=_BATCH,
        mean=True,
        save=form.points,
    )
    margins = [_under_pgd(form, run, part) for part in data]
    right = [np.mean(part > 0, axis=1) for part in margins]
    return _Curve(run.num_steps_at / per_epoch, margins[0].min(axis=1), *right)


def _under_pgd(form: _Form, run: Any, data: Any) -> np.ndarray:
    """The normalized margin of every example at every saved point. Shapes: (s, n)."""
    starts = range(0, len(data), _CHUNK)
    chunks = [data.take(range(start, min(start + _CHUNK, len(data)))) for start in starts]
    problems = [_problem(form, chunk, _attacks()["PGD"]) for chunk in chunks]
    rows = []
    for vector in run.vectors:
        direction = run.layout.unflatten(vector)
        found = [np.asarray(problem.margins(direction)) for problem in problems]
        rows.append(np.concatenate([each.reshape(len(each), -1).min(axis=1) for each in found]))
    return np.stack(rows)


def _draw(data: Mapping[str, Any]) -> Any:
    curves = data["curves"]
    figure, axes = panels(2, len(curves))
    for row, (classes, found) in enumerate(curves.items()):
        left, right = axes[2 * row : 2 * row + 2]
        for name, curve in found.items():
            left.plot(curve.epochs, curve.margin, label=name)
            right.plot(curve.epochs, curve.held_out, label=name)
        left.axhline(0.0, **GREY)
        left.set(xlabel="epochs", ylabel="normalized margin under PGD", title=f"{classes} classes")
        right.set(xlabel="epochs", ylabel="accuracy under PGD, held out", ylim=(0, 1.02))
        right.set_title(f"{classes} classes")
    axes[1].legend(loc="lower right")
    return figure


STUDY = Study(
    name="paper-experiment",
    title="The experiment of the paper: MNIST, clean, FGSM and PGD",
    claim="Trained adversarially, the smallest normalized margin of the perturbed examples comes "
    "out above that of clean training, which has none, and it rises with the epochs once all "
    "examples withstand the attack. More images withstand it, of those trained on and of others.",
    setting="Network d-1024-64-out of ReLUs without biases, SGD with constant steps on the mean "
    "logistic loss or cross-entropy, batches of 80; FGSM of radius 16/255, and PGD of 5 steps of "
    "6/255 in that ball. Small form: scikit-learn's digits (8 x 8 pixels, 3 against 8 and all "
    "ten, a first layer of 256), steps of 0.5, 150 and 60 epochs. Step size, epochs, start and the "
    "two classes are not published and were chosen here. The attacks follow the gradient of the "
    "margin and not of the loss: with two classes these are the same attack; with ten, where the "
    "margin against the runner-up is attacked, they become the same as the loss goes to 0. Margins "
    "are the smallest of all images that are trained on, under PGD, divided by the third power of "
    "the norm of the parameters.",
    source="Lyu & Zhu 2022, experiments",
    run=_measure,
    figure=_draw,
    full="The first 3000 images of MNIST in place of scikit-learn's digits, 3 against 7 and all "
    "ten, a first layer of 1024, steps of 1 in 80 epochs and of 0.3 in 40; `GFLOW_DATA` names the "
    "folder of its files. Some 13 minutes of one core.",
)
