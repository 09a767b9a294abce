"""From a `Configuration` to problems with their starts. Here JAX is first imported."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gflow import configuration as tables
from gflow import datasets, losses, networks, perturbations
from gflow._typing import Params
from gflow.commands.bounds import Size, too_large
from gflow.commands.reading import UserError
from gflow.configuration import Configuration
from gflow.problem import Problem
from gflow.report.spread import seeded
from gflow.validation import check_start


class Case(NamedTuple):
    """One run to do: a network under a perturbation, and where it starts.

    Attributes:
        network: what it is called; with its seed where there are several.
        perturbation: what it is called.
    """

    network: str
    perturbation: str
    problem: Problem
    params: Params


class Work(NamedTuple):
    """What a configuration describes.

    Attributes:
        cases: every run, networks and seeds outermost.
        held_out: examples that no run sees, or None.
    """

    cases: list[Case]
    held_out: datasets.Dataset | None


def build(configuration: Configuration, *, num_examples: int | None = None) -> Work:
    """Every network under every perturbation from every seed, checked to the point of integrating.

    All perturbations of a network share its starting point. `num_examples` keeps so many examples.

    Raises:
        UserError: the data cannot be read, or a network, perturbation and data do not fit.
    """
    dataset, held_out = _named("[data]", build_datasets, configuration.data)
    if num_examples is not None:
        dataset, _ = first_of_each(dataset, num_examples)
    return Work(build_cases(configuration, dataset), held_out)


def build_cases(configuration: Configuration, dataset: datasets.Dataset) -> list[Case]:
    """The runs of `build` on examples that have been read.

    Raises:
        UserError: a network, perturbation and data do not fit.
    """
    # Only now are the numbers of examples, inputs and classes of files known.
    lines = too_large(configuration, Size(len(dataset), dataset.x.shape[1], dataset.num_outputs))
    if lines:
        raise UserError(f"the networks do not fit into memory: {'; '.join(lines)}.")
    _check_batches(configuration.descent, len(dataset))
    names = tables.labels(configuration.attacks)
    attacks = {
        name: _named(name, build_perturbation, table)
        for name, table in zip(names, configuration.attacks, strict=True)
    }
    cases = []
    for label, table in zip(
        tables.labels(configuration.network), configuration.network, strict=True
    ):
        network = _named(label, build_network, table, dataset)
        for seed in configuration.seeds:
            place = seeded(label, seed) if len(configuration.seeds) > 1 else label
            params = _named(place, network.init, seed, scale=table.scale)
            for name, attack in attacks.items():
                problem = _problem(configuration, f"{label}, {name}", network, dataset, attack)
                start = _named(place, check_start, problem, params)
                cases.append(Case(place, name, problem, start))
    return cases


def _check_batches(table: tables.DescentTable, num_examples: int) -> None:
    size = table.batch_size
    if table.enabled and size is not None and size > num_examples:
        raise UserError(
            f"[descent]: `batch_size = {size}`, but there are {num_examples} examples to train on."
        )


def _problem(
    configuration: Configuration,
    label: str,
    network: networks.AbstractNetwork,
    dataset: datasets.Dataset,
    attack: perturbations.AbstractPerturbation,
) -> Problem:
    options = {
        "loss": getattr(losses, configuration.loss)(),
        "gradient": configuration.gradient,
        "rivals": configuration.rivals,
    }
    return _named(label, Problem, network, dataset, perturbation=attack, **options)


def build_columns(configuration: Configuration) -> dict[str, perturbations.AbstractPerturbation]:
    """The attacks by which every trained network is attacked: those of training, signs exact."""
    tables_ = [
        table.model_copy(update={"smoothing": 0.0}) if hasattr(table, "smoothing") else table
        for table in configuration.attacks
    ]
    names = tables.labels(configuration.attacks)
    return {name: build_perturbation(table) for name, table in zip(names, tables_, strict=True)}


def _named(label: str, function: Callable, *args: Any, **options: Any) -> Any:
    """`function(...)`; what is wrong with its input is the user's to mend, and says of what."""
    try:
        return function(*args, **options)
    except (ValueError, TypeError, OSError, ImportError, KeyError, MemoryError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        message = message if str(message) else "it does not fit into memory"
        raise UserError(f"{label}: {message}") from error


def build_datasets(table: tables.Data) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The examples that a `[data]` table describes: those to train on, and those held out.

    Raises:
        ValueError: examples held out of another kind than those to train on.
    """
    dataset, held_out = build_dataset(table), None
    match table:
        case tables.Digits(limit=int(limit)):
            return first_of_each(dataset, limit)
        case tables.Mnist(split="train"):
            held_out = build_dataset(table.model_copy(update={"split": "test", "limit": None}))
        case tables.Npz(held_out=Path()) | tables.Csv(held_out=Path()):
            held_out = build_dataset(table.model_copy(update={"path": table.held_out}))
    if held_out is not None:
        _check_alike(dataset, held_out)
    return dataset, held_out


def _check_alike(dataset: datasets.Dataset, held_out: datasets.Dataset) -> None:
    one, other = ((each.x.shape[1], each.num_outputs) for each in (dataset, held_out))
    if one != other:
        raise ValueError(
            f"the examples held out have {other[0]} inputs and {other[1]} outputs, those to train "
            f"on {one[0]} and {one[1]}."
        )


def build_dataset(table: tables.Data) -> datasets.Dataset:
    """The examples that a `[data]` table describes, those to train on and those held out alike."""
    match table:
        case tables.Npz():
            return _read_npz(table)
        case tables.Csv():
            return _read_csv(table)
        case tables.Digits():
            return datasets.digits(table.positive, table.negative)
    return getattr(datasets, table.kind)(**table.model_dump(exclude={"kind"}))


def _read_npz(table: tables.Npz) -> datasets.Dataset:
    try:
        with np.load(table.path, allow_pickle=False) as file:
            names = list(file.files)
            arrays = {name: file[name] for name in (table.x, table.y) if name in names}
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"`{table.path}` is no NumPy .npz file, or damaged: {error}.") from None
    missing = [name for name in (table.x, table.y) if name not in arrays]
    if missing:
        raise ValueError(
            f"`{table.path}` holds no array `{missing[0]}`; it holds "
            f"{', '.join(names) or 'nothing'}. Set `data.x` and `data.y`."
        )
    return datasets.Dataset(arrays[table.x], arrays[table.y])


def _read_csv(table: tables.Csv) -> datasets.Dataset:
    layout = {"delimiter": table.delimiter, "skiprows": table.skip_lines, "ndmin": 2}
    try:
        values = np.loadtxt(table.path, encoding="utf-8", **layout)
    except ValueError as error:
        raise ValueError(
            f"`{table.path}` is no table of numbers: {error} Set `data.skip_lines` to pass over a "
            "header, and `data.delimiter`."
        ) from None
    columns = values.shape[1]
    if not -columns <= table.label < columns or columns < 2:
        raise ValueError(
            f"`{table.path}` has {columns} column(s); `data.label = {table.label}` names none of "
            "them, or none would be left for the inputs."
        )
    return datasets.Dataset(np.delete(values, table.label, axis=1), values[:, table.label])


def first_of_each(
    dataset: datasets.Dataset, num_examples: int
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """At most `num_examples` examples, as many of each label; and the others, None for none."""
    labels = np.unique(dataset.y)
    share = max(num_examples // len(labels), 1)
    chosen = np.zeros(len(dataset), bool)
    for label in labels:
        chosen[np.flatnonzero(dataset.y == label)[:share]] = True
    first = datasets.Dataset(dataset.x[chosen], dataset.y[chosen])
    if len(np.unique(dataset.y[~chosen])) < len(labels):  # too few to tell an accuracy
        return first, None
    return first, datasets.Dataset(dataset.x[~chosen], dataset.y[~chosen])


def build_network(table: tables.Network, dataset: datasets.Dataset) -> networks.AbstractNetwork:
    """The network that a `[[network]]` table describes, with the data's inputs and outputs."""
    d, outputs = dataset.x.shape[1], dataset.num_outputs
    match table:
        case tables.Linear():
            return networks.linear(d, num_outputs=outputs)
        case tables.Diagonal():
            return networks.diagonal(d, table.depth)
        case tables.DeepLinear():
            return networks.deep_linear((d, *table.hidden, outputs))
        case tables.Conv():
            return _build_conv(table, d, outputs)
    widths = (d, *table.hidden, outputs)
    return networks.mlp(widths, power=table.power, smoothing=table.smoothing, bias=table.bias)


def _build_conv(table: tables.Conv, d: int, outputs: int) -> networks.AbstractNetwork:
    side = math.isqrt(d)
    if table.input_shape is None and side**2 != d:
        raise ValueError(
            f"the examples have {d} inputs, which make no square image. Set `input_shape = "
            "[channels, height, width]`."
        )
    channels, height, width = table.input_shape or (1, side, side)
    pools = {
        "none": [],
        "max": [networks.MaxPool(table.pool_size)],
        "average": [networks.AveragePool(table.pool_size)],
    }
    layers: list[Any] = []
    for filters in table.channels:
        options = {"stride": table.stride, "padding": table.padding}
        layers += [networks.Convolution(filters, table.size, **options), *pools[table.pool]]
    layers += [networks.Dense(width) for width in (*table.hidden, outputs)]
    return networks.conv(
        (channels, height, width), layers, power=table.power, smoothing=table.smoothing
    )


def build_perturbation(table: tables.Perturbation) -> perturbations.AbstractPerturbation:
    """The perturbation that a `[[perturbation]]` table describes."""
    options = table.model_dump(exclude={"kind", "name"})
    if options.get("box") is not None:
        options["box"] = tuple(options["box"])
    return getattr(perturbations, table.kind)(**options)
