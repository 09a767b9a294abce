"""Trajectories in files: those of earlier versions, damaged ones, and what cannot be a run's."""

import dataclasses
import importlib
import inspect
import io
import json
import os
import pkgutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gflow
from gflow import _archive, losses, networks, perturbations
from gflow._description import NotRestorable, decode, encode, storable, stored_name
from gflow.flow.clocked import ClockedRosenbrock
from gflow.record import COLUMNS

DATA = Path(__file__).parent / "data"
# Written by version 0.1.0: a perceptron 2-6-1 with a bias, smoothed ReLU, FGM; 7 and 8 points.
EARLIER = {"flow": DATA / "flow_0_1_0.npz", "descent": DATA / "descent_0_1_0.npz"}
CONTENT = EARLIER["flow"].read_bytes()


@pytest.fixture(scope="module")
def flow():
    return gflow.load(EARLIER["flow"])


# Files of earlier versions

# What version 0.1.0 read at log-loss -1, in the runs that it saved: the weights of the first neuron
# and the outer ones.
READ = {
    "flow": (
        [-0.2171029654253769, -0.27396828913950505, 0.9743843240556204],
        [
            -0.6546307636636761,
            0.430957299749092,
            2.2330077576727536,
            0.012671313368754676,
            -0.47564020372666815,
            -1.113690565817867,
        ],
    ),
    "descent": (
        [-0.18824051328731387, -0.28366313332536297, 0.9647963037870827],
        [
            -0.6355587206272538,
            0.4308985049759142,
            2.187328300146594,
            0.01201816192735572,
            -0.49789369543455697,
            -1.1618603314304272,
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EARLIER)
def test_a_file_of_an_earlier_version_is_read(kind):
    run = gflow.load(EARLIER[kind])
    assert (run.kind, run.result_name) == (kind, "successful")
    inner, outer = run.at(log_loss=-1.0)
    # A flow is integrated again, within its tolerance of 1e-8, whose steps may be others by now.
    np.testing.assert_allclose(inner[0], READ[kind][0], rtol=1e-6)
    np.testing.assert_allclose(outer[0], READ[kind][1], rtol=1e-6)


def test_an_earlier_file_has_all_that_belongs_to_a_run(flow):
    assert len(flow) == 7
    assert flow.log_loss[-1] == pytest.approx(-3.0, abs=1e-12)
    assert flow.margin[-1] == pytest.approx(0.13982642737827602, rel=1e-15)
    assert flow.stats["num_steps"] == 93 and flow.settings["until"] == {"log_loss": -3.0}
    expected = networks.mlp((2, 6, 1), smoothing=0.1, bias=True)
    assert flow.problem.network == expected
    assert flow.problem.perturbation == perturbations.fgm(0.05)
    again = np.min(flow.problem.margins(flow.direction))
    assert again == pytest.approx(flow.margin[-1], rel=1e-12)


# Written with format 1, which names classes by their modules: a deep linear network 2-3-1 under FGM
# by Rodas4P with a `Krylov` whose rank was called `most_margins`; up to a log-loss of -2.
FORMER = DATA / "flow_format_1.npz"


def test_a_solver_of_the_former_format_is_restored():
    run = gflow.load(FORMER)
    assert run.problem.network == networks.deep_linear((2, 3, 1))
    solver = run.checkpoint.solver
    assert type(solver) is ClockedRosenbrock and solver.method == "Rodas4P"
    assert solver.linear_solver == gflow.Krylov(1e-3, most_directions=12, rank=3)


@pytest.mark.slow
def test_a_run_of_the_former_format_goes_on_from_its_checkpoint():
    run = gflow.load(FORMER)
    further = gflow.integrate(run.problem, run, until=gflow.Until(log_loss=-6.0))
    # With the options that it had, and not from its last point, as with others.
    assert "earlier" not in further.settings
    assert further.log_norm[-1] == pytest.approx(1.4241959650508385, abs=1e-5)
    expected = [0.07024748, 0.03575101, 0.57695685, 0.43918354, -0.01925603]
    np.testing.assert_allclose(further.vectors[-1][:5], expected, atol=1e-5)


@pytest.mark.slow
def test_a_fresh_process_restores_solvers_and_reads_between_points():
    program = (
        "import sys, gflow\n"
        "solver = gflow.load(sys.argv[1]).checkpoint.solver\n"
        "inner, _ = gflow.load(sys.argv[2]).at(log_loss=-1.0)\n"
        "print(solver.linear_solver.rank, *inner[0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, FORMER, EARLIER["descent"]],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
    )
    rank, *weights = map(float, run.stdout.split())
    assert rank == 3
    np.testing.assert_allclose(weights, READ["descent"][0], rtol=1e-6)


def test_what_is_saved_again_is_the_same(flow, tmp_path):
    assert_equal(gflow.load(flow.save(tmp_path / "again")), flow)


def assert_equal(left, right):
    for name in COLUMNS:
        np.testing.assert_array_equal(left.columns[name], right.columns[name])
        assert left.columns[name].dtype == right.columns[name].dtype
    np.testing.assert_array_equal(left.vectors, right.vectors)
    names = ("kind", "layout", "stats", "settings", "result_name", "problem")
    for name in names:
        assert getattr(left, name) == getattr(right, name)


def test_a_full_disk_leaves_the_earlier_trajectory(flow, tmp_path, monkeypatch):
    path = flow.save(tmp_path / "run")
    before = path.read_bytes()

    def full(handle, **tables):
        handle.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_archive.np, "savez", full)
    with pytest.raises(OSError, match=r"No space left.*run\.npz"):
        flow.save(tmp_path / "run")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]


# Damage: whatever it is, ValueError; or it hit what means nothing, and the run is the same


def outcome(folder, content):
    """The run in a file of this content, or None where it is refused as documented."""
    path = folder / "damaged.npz"
    path.write_bytes(content)
    try:
        return gflow.load(path)
    except ValueError as error:
        assert "this is not a trajectory that gflow can read" in str(error)
        return None


def packed(content, method):
    """The same arrays in an archive that is compressed."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return target.getvalue()


FORMS = {"stored": CONTENT, "deflated": packed(CONTENT, zipfile.ZIP_DEFLATED)}


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_are_found_or_mean_nothing(form, flow, tmp_path):
    content, refused, total = FORMS[form], 0, 0
    for place in range(0, len(content), 29):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        run = outcome(tmp_path, bytes(flipped))
        total += 1
        refused += run is None
        if run is not None:
            assert_equal(run, flow)
    # Nearly all of a file is content; dates and padding are not.
    assert refused > 0.6 * total > 100


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_off_is_refused(form, tmp_path):
    content = FORMS[form]
    for length in range(0, len(content) - 1, 53):
        assert outcome(tmp_path, content[:length]) is None


PATCHES = st.lists(
    st.tuples(st.integers(0, len(CONTENT) - 1), st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100)
@given(patches=PATCHES, cut=st.integers(0, 40), form=st.sampled_from(sorted(FORMS)))
@example(patches=[(len(CONTENT) - 12, b"\0\0\0\0")], cut=0, form="stored")
def test_any_damage_is_found_or_means_nothing(flow, tmp_path_factory, patches, cut, form):
    damaged = bytearray(FORMS[form])
    for place, patch in patches:
        place %= len(damaged)
        damaged[place : place + len(patch)] = patch
    run = outcome(tmp_path_factory.getbasetemp(), bytes(damaged[: len(damaged) - cut]))
    if run is not None:
        assert_equal(run, flow)


def central(content, offset, patch):
    """The first entry of the archive's directory, changed."""
    place = content.index(b"PK\x01\x02") + offset
    return content[:place] + patch + content[place + len(patch) :]


def remade(**changes):
    """The archive with other arrays in place of, or beside, its own; None leaves one out."""
    arrays = {**np.load(io.BytesIO(CONTENT)), **changes}
    target = io.BytesIO()
    np.savez(target, **{name: value for name, value in arrays.items() if value is not None})
    return target.getvalue()


def with_header(**changes):
    header = json.loads(str(np.load(io.BytesIO(CONTENT))["header"]))
    return remade(header=np.asarray(json.dumps({**header, **changes})))


def with_member(name, content, method=zipfile.ZIP_STORED):
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(CONTENT)) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return target.getvalue()


def npy(shape, data, descr="<f8"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


ODD = {
    "unknown compression": central(CONTENT, 10, b"\x63"),
    "encryption": central(CONTENT, 8, b"\x01"),
    "an absurd size": central(CONTENT, 24, b"\xf0\xff\xff\x7f"),
    "bzip2": packed(CONTENT, zipfile.ZIP_BZIP2),
    "a bomb": with_member("vectors.npy", bytes(2**27), zipfile.ZIP_DEFLATED),
    "a shape that is not there": with_member("vectors.npy", npy((10**12, 24), b"\0" * 64)),
    "a negative shape": with_member("vectors.npy", npy((-1, 24), b"\0" * 64)),
    "objects": with_member("vectors.npy", npy((1,), b"cos\nsystem\n(S'true'\ntR.", "|O")),
    "records": with_member("vectors.npy", npy((1,), b"\0" * 8, [("a", "<f8")])),
    "a header nested deep": remade(header=np.asarray("[" * 100_000)),
    "a header nested deep, within": remade(header=np.asarray('{"format": ' * 50_000)),
    "a number of 10000 digits": remade(header=np.asarray('{"format": ' + "1" * 10_000 + "}")),
    "a header of bytes": remade(header=np.asarray(b"{}")),
    "no header": remade(header=None),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_odd_archives_are_refused(tmp_path, content):
    assert outcome(tmp_path, content) is None


VECTORS = np.load(io.BytesIO(CONTENT))["vectors"]
STEPS = np.load(io.BytesIO(CONTENT))["column_num_steps_at"]
HEADER = json.loads(str(np.load(io.BytesIO(CONTENT))["header"]))


def with_problem(change):
    problem = json.loads(json.dumps(HEADER["problem"]))
    change(problem["fields"])
    return with_header(problem=problem)


def other_radius(fields):
    fields["perturbation"]["fields"]["radius"]["number"] = -0.05


def other_widths(fields):
    fields["network"]["fields"]["widths"]["tuple"][1] = 7


def other_classes(fields):
    fields["dataset"]["fields"]["num_classes"] = 3


def no_loss(fields):
    fields["loss"] = fields["network"]


IMPOSSIBLE = {
    "directions of another size": remade(vectors=VECTORS[:, 1:]),
    "directions of one point": remade(vectors=VECTORS[0]),
    "directions in float32": remade(vectors=VECTORS.astype(np.float32)),
    "directions that are NaN": remade(vectors=VECTORS * np.nan),
    "directions that are infinite": remade(vectors=VECTORS + np.inf),
    "directions that are no unit vectors": remade(vectors=1.001 * VECTORS),
    "no points": remade(vectors=VECTORS[:0], **{f"column_{name}": np.zeros(0) for name in COLUMNS}),
    "a column of another length": remade(column_margin=np.zeros(3)),
    "a column of words": remade(column_margin=np.asarray(["a"] * len(VECTORS))),
    "a column left out": remade(column_margin=None),
    "a norm that is NaN": remade(column_log_norm=np.full(len(VECTORS), np.nan)),
    "steps that go back": remade(column_num_steps_at=STEPS[::-1]),
    "steps below zero": remade(column_num_steps_at=STEPS - 1),
    "steps that are no counts": remade(column_num_steps_at=STEPS.astype(float)),
    "another kind": with_header(kind="flux"),
    "another result": with_header(result="fine"),
    "another format": with_header(format=3),
    "no steps": with_header(stats={}),
    "a list of steps": with_header(stats={**HEADER["stats"], "num_steps": [93]}),
    "settings that are a list": with_header(settings=[1]),
    "no tolerance": with_header(settings={**HEADER["settings"], "tolerance": None}),
    "a negative tolerance": with_header(settings={**HEADER["settings"], "tolerance": -1.0}),
    "a solver that is a number": with_header(settings={**HEADER["settings"], "solver": 5}),
    "another structure": with_header(structure={"leaf": [24]}),
    "a structure of words": with_header(structure={"leaf": ["a"]}),
    "a problem that is a number": with_header(problem=3),
    "a problem that is a network": with_header(problem=HEADER["problem"]["fields"]["network"]),
    "a negative radius": with_problem(other_radius),
    "a network of other widths": with_problem(other_widths),
    "labels of other classes": with_problem(other_classes),
    "a network for a loss": with_problem(no_loss),
    "data that are NaN": remade(array0=np.full((5, 2), np.nan)),
    "data of another shape": remade(array0=np.zeros((5, 3))),
    "labels left out": remade(array1=None),
}


@pytest.mark.parametrize("content", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_a_run_is_refused(tmp_path, content):
    assert outcome(tmp_path, content) is None


def test_a_class_that_is_none_of_gflows_is_not_made(tmp_path):
    content = with_header(problem={"class": "subprocess:Popen", "fields": {}})
    run = outcome(tmp_path, content)
    assert run is not None and run.problem is None


def test_a_folder_is_no_trajectory(tmp_path):
    with pytest.raises(ValueError, match=r"not a trajectory.*directory"):
        gflow.load(tmp_path)


@pytest.mark.usefixtures("own_words")
@pytest.mark.parametrize("path", [3, None, b"run.npz"])
def test_a_path_that_is_none_is_told(path):
    with pytest.raises(TypeError, match="give the path of a file"):
        gflow.load(path)


@pytest.mark.usefixtures("own_words")
def test_another_problem_than_that_of_the_run_is_refused(flow):
    other = networks.mlp((2, 5, 1), smoothing=0.1, bias=True)
    problem = gflow.Problem(other, flow.problem.dataset, loss=losses.logistic())
    with pytest.raises(ValueError, match="`problem` is not that of the run"):
        gflow.load(EARLIER["flow"], problem=problem)
    with pytest.raises(TypeError, match=r"expected a `gflow\.Problem`"):
        gflow.load(EARLIER["flow"], problem=flow)


LAYERS = [networks.Convolution(2, 2, stride=2), networks.MaxPool(2), networks.Dense(3)]
DESCRIBED = {
    "conv": networks.conv((1, 4, 4), LAYERS, smoothing=0.1),
    "diagonal": networks.diagonal(3, 2),
    "pgd": perturbations.pgd(0.1, order=2, box=(0.0, 1.0), random_start=1),
    "clean": perturbations.clean(),
    "exponential": losses.exponential(),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_survives_its_file(name):
    arrays = {}
    encoded = json.loads(json.dumps(encode(DESCRIBED[name], arrays)))
    again = decode(encoded, arrays)
    assert again == DESCRIBED[name]
    assert jax.tree.structure(again) == jax.tree.structure(DESCRIBED[name])


# Names of classes in files. One that stands here stays, whatever the class is called later.
NAMES = {
    "AveragePool",
    "Clean",
    "ClockedRosenbrock",
    "Convolution",
    "Convolutional",
    "Custom",
    "Dataset",
    "DeepLinear",
    "Dense",
    "Diagonal",
    "Exponential",
    "FastGradient",
    "Krylov",
    "Logistic",
    "MLP",
    "MaxPool",
    "Problem",
    "ProjectedGradient",
    "Rosenbrock",
    "RungeKuttaChebyshev",
}
# Parts that are made anew, and bases.
NEVER_STORED = {"Coefficients", "RosenbrockInterpolation", "Tableau", "_Pool"}
HOMES = ("datasets", "losses", "networks", "perturbations", "problem", "stiff", "flow.clocked")


def modules(home):
    """A module, and those in it if it is a folder."""
    module = importlib.import_module(f"gflow.{home}")
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        yield importlib.import_module(f"{module.__name__}.{found.name}")


def described_classes():
    """The classes of descriptions that can be made."""
    for home in HOMES:
        for module in modules(home):
            for kind in vars(module).values():
                own = isinstance(kind, type) and kind.__module__ == module.__name__
                if not own or inspect.isabstract(kind) or kind.__name__.startswith("Abstract"):
                    continue
                if issubclass(kind, eqx.Module) or dataclasses.is_dataclass(kind):
                    yield kind


def test_every_class_that_files_hold_has_a_name_of_its_own():
    kinds = set(described_classes())
    named = {kind: stored_name(kind) for kind in kinds}
    without = {kind.__name__ for kind, name in named.items() if name is None}
    assert without == NEVER_STORED, (
        "Declare it with `@storable(...)`, or, if no file holds it, add it to NEVER_STORED."
    )
    names = [name for name in named.values() if name is not None]
    assert sorted(names) == sorted(NAMES), (
        "A new class has its name in NAMES; one that stands there is in files and never changes."
    )


def test_a_name_cannot_be_given_twice():
    with pytest.raises(ValueError, match="cannot have one name"):

        @storable("MLP")
        class Other:
            pass


def test_a_users_own_class_is_not_taken_for_that_of_gflow():
    class Own(networks.MLP):
        pass

    own = Own((2, 3, 1), 1, False, None)
    with pytest.raises(NotRestorable, match="Own"):
        decode(json.loads(json.dumps(encode(own, {}))), {})


@pytest.mark.parametrize(
    "former",
    [
        "gflow.flow.rosenbrock:Rosenbrock",
        "gflow.stiff.rosenbrock:Rosenbrock",
        "gflow.networks._dense:MLP",
    ],
)
def test_the_former_name_of_a_class_is_known(former):
    with pytest.raises(NotRestorable, match="other fields"):
        decode({"class": former, "fields": {"unknown": 1}}, {})
    with pytest.raises(NotRestorable, match="no class of gflow"):
        decode({"class": f"not_{former}", "fields": {}}, {})
