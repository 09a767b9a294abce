"""Configurations that would end the process, or never end, are refused by the field's name."""

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gflow import configuration as tables
from gflow.__main__ import main
from gflow.commands import bounds
from gflow.commands.bounds import Size, too_large
from gflow.commands.building import build_network
from gflow.commands.reading import UserError, read_configuration
from gflow.configuration import Configuration
from gflow.datasets import Dataset

CONV = '[[network]]\nkind = "conv"\n'
MLP = '[[network]]\nkind = "mlp"\n'
GAUSSIAN = '[data]\nkind = "gaussian"\n'

ABSURD = {
    # what is written in the file -> the field that the message must name
    "a filter of 1e9": (CONV + "size = 1000000000", "network[0].size"),
    "a filter of 1e4": (CONV + "size = 10000\nchannels = [2]", "network[0].size"),
    "1e9 filters": (CONV + "channels = [1000000000]", "network[0].channels"),
    "filters of filters": (CONV + "channels = [20000, 20000]", "network[0].channels"),
    "a window of 1e9": (CONV + "pool_size = 1000000000", "network[0].pool_size"),
    "a stride of 1e9": (CONV + "stride = 1000000000", "network[0].stride"),
    "an image of 1e12": (CONV + "input_shape = [1, 1000000, 1000000]", "network[0].input_shape"),
    "a dense layer of 1e9": (CONV + "hidden = [1000000000]", "network[0].hidden"),
    "a depth of 1e5": ('[[network]]\nkind = "diagonal"\ndepth = 100000', "network[0].depth"),
    "1e5 layers": (MLP + f"hidden = {[2] * 100_000}", "network[0].hidden"),
    "a width of 1e9": (MLP + "hidden = [1000000000]", "network[0].hidden"),
    "a width of 1e300": (MLP + f"hidden = [1{'0' * 300}]", "network[0].hidden"),
    "two wide layers": (MLP + "hidden = [20000, 20000]", "network[0].hidden"),
    "a power of 1e9": (MLP + "power = 1e9", "network[0].power"),
    "the second network": (MLP + MLP + "hidden = [1000000000]", "network[1].hidden"),
    "1e9 examples": (GAUSSIAN + "n = 1000000000", "data"),
    "1e9 inputs": (GAUSSIAN + "d = 1000000000", "data"),
    "many inputs and examples": (GAUSSIAN + "n = 100000\nd = 100000", "data"),
    "1e12 points": ('[data]\nkind = "soudry"\nnum_random = 1000000000000', "data"),
    "activations": (
        GAUSSIAN + "n = 1000000\nd = 2\n" + MLP + "hidden = [5000]",
        "network[0].hidden",
    ),
    "1e9 steps of an attack": (
        '[[perturbation]]\nkind = "pgd"\nradius = 0.1\nnum_steps = 1000000000',
        "perturbation[0].num_steps",
    ),
    "a seed of 65 bits": (f"seed = {2**64}", "seed"),
    "a seed of the data": (GAUSSIAN + f"seed = {2**64}", "data.seed"),
    "1e5 networks": (MLP * 2000, "network"),
}


@pytest.mark.parametrize(("text", "field"), ABSURD.values(), ids=ABSURD)
def test_what_cannot_be_held_is_refused_by_name(tmp_path, text, field):
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        read_configuration(path)
    assert f"`{field}`" in str(refusal.value)
    assert len(str(refusal.value)) < 2000


NESTED = {
    "lists": "seed = " + "[" * 100_000,
    "lists that end": "seed = " + "[" * 5_000 + "]" * 5_000,
    "tables": "seed = " + "{a = " * 20_000,
    "a dotted key": ".".join("a" * 4_000) + " = 1",
    "a dotted table": f"[{'.'.join('a' * 4_000)}]\nb = 1",
    "an integer of 10000 digits": "seed = " + "1" * 10_000,
}


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_nesting_and_endless_numbers_are_refused(tmp_path, text, capsys):
    path = tmp_path / "job.toml"
    path.write_text(text)
    assert main(["run", str(path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error) < 3000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["a." * 20_000 + "b=1", "seed=" + "[" * 50_000])
def test_nested_overrides_are_refused(override):
    with pytest.raises(UserError) as refusal:
        read_configuration(None, [override])
    assert len(str(refusal.value)) < 3000


def test_an_endless_file_is_refused():
    with pytest.raises(UserError):
        read_configuration(Path("/dev/zero"))


def test_refusals_come_before_jax_and_before_the_folder(tmp_path):
    (tmp_path / "job.toml").write_text(ABSURD["a filter of 1e9"][0])
    code = (
        "import sys; from gflow.__main__ import main; "
        "print(main(['run', 'job.toml']), 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2 False", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


@pytest.mark.slow
def test_large_data_in_a_file_are_checked_once_they_are_read(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 30_000)), y=[1, -1])
    text = '[data]\nkind = "npz"\npath = "data.npz"\n' + MLP + "hidden = [10000]"
    (tmp_path / "job.toml").write_text(text)
    assert main(["run", str(tmp_path / "job.toml"), "-o", str(tmp_path / "out")]) == 2
    assert "`network[0].hidden`: the network would have 3e+08 weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


HIDDEN = st.lists(st.integers(1, 5), max_size=3)
DENSE = st.builds(tables.DeepLinear, hidden=HIDDEN) | st.builds(tables.Mlp, hidden=HIDDEN)
CONVS = st.builds(
    tables.Conv,
    input_shape=st.just([2, 4, 3]),
    channels=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    size=st.integers(1, 2),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["SAME", "VALID"]),
    hidden=HIDDEN,
)


@given(st.one_of(DENSE, CONVS, st.just(tables.Linear()), st.just(tables.Diagonal())))
def test_weights_are_counted_as_the_network_has_them(table):
    inputs = np.random.default_rng(0).normal(size=(3, 24))
    dataset = Dataset(inputs, [-1, 1, 1])
    try:
        network = build_network(table, dataset)
    except ValueError:  # windows that leave nothing of the image
        return
    import equinox as eqx
    import jax

    made = eqx.filter_eval_shape(network._initial, jax.random.key(0), np.float64(1))
    counted = sum(layer.weights for layer in bounds._layers(table, Size(3, 24, 1)))
    assert counted == sum(leaf.size for leaf in jax.tree.leaves(made))


def test_what_is_large_but_possible_passes():
    table = tables.Mlp(hidden=[4000, 4000])
    configuration = Configuration(data=tables.Mnist(), network=[table])
    assert too_large(configuration, Size(12_000, 784, 1)) == []
    images = tables.Conv(channels=[16, 32], hidden=[256])
    assert too_large(Configuration(network=[images]), Size(12_000, 784, 10)) == []


def test_checking_costs_neither_time_nor_memory():
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(UserError):
        read_configuration(None, ["network=[{kind='mlp', hidden=[1000000000]}]"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26
    assert time.process_time() - begun < 60  # it would not end at all
