"""`find_limits`: the limits of many flows side by side are those of the flows one by one."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import gflow
from gflow import losses, networks, perturbations
from gflow.batch import arguments, finding
from gflow.batch import flow as batch_flow

SQUARED = networks.mlp((3, 6, 1), power=2)
# So many runs of one structure, with data, radius and start of their own.
RADII = (0.0, 0.02, 0.05, 0.1, 0.08)


def problem_of(seed, network=SQUARED, radius=0.05, num_examples=10, dim=3):
    data = gflow.datasets.gaussian(num_examples, dim, gap=0.5, seed=seed)
    return gflow.Problem(
        network, data, loss=losses.exponential(), perturbation=perturbations.fgm(radius)
    )


PROBLEMS = [problem_of(seed, radius=radius) for seed, radius in enumerate(RADII)]
STARTS = [SQUARED.init(seed, scale=0.5 + seed % 3) for seed in range(len(RADII))]


def vector(limit):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(limit.direction)])


@pytest.fixture(scope="module")
def together():
    return gflow.find_limits(PROBLEMS, STARTS)


def is_strict(limit):
    return limit.verdict in ("strict maximum", "stable rest point") and limit.basin == "confirmed"


def test_limits_are_those_of_the_runs_one_by_one(together):
    alone = [gflow.find_limit(*each) for each in zip(PROBLEMS, STARTS, strict=True)]
    strict = 0
    for one, other, problem in zip(together, alone, PROBLEMS, strict=True):
        assert one.successful and other.successful
        assert one.problem is problem
        assert one.certificate.stationarity <= 1e-8 and one.polished.residual <= 1e-8
        assert one.margin == pytest.approx(other.margin, rel=1e-9)
        # Both logits lie within `FlowSettings.cap_accuracy`, 1e-2, of what was asked for.
        assert one.cap_logits == pytest.approx(1e3, rel=0.011)
        assert one.handover_stationarity <= 1.11e-3
        if is_strict(one) and is_strict(other):
            strict += 1
            # Newton's method ends at a residual of 1e-12; conditions are below 1e2 here.
            np.testing.assert_allclose(vector(one), vector(other), atol=1e-10)
            np.testing.assert_allclose(
                one.certificate.multipliers, other.certificate.multipliers, rtol=1e-6, atol=1e-8
            )
    assert strict >= 3


def test_a_certificate_is_that_of_the_point_by_itself(together):
    for limit in together[:2]:
        params = limit.params(log_kappa=limit.log_kappa_cap)
        alone = gflow.certify(limit.problem, params).to_dict()
        for name, value in limit.certificate.to_dict().items():
            if value is None:
                assert alone[name] is None
                continue
            # Sums in another order: residuals of 1e-15 differ altogether.
            np.testing.assert_allclose(value, alone[name], rtol=1e-6, atol=1e-12, err_msg=name)


def test_the_trajectory_is_that_of_the_true_flow(together):
    limit = together[1]
    flow = gflow.integrate(
        PROBLEMS[1], STARTS[1], until=gflow.Until(log_kappa=limit.log_kappa_cap), tolerance=1e-8
    )
    assert limit.trajectory.log_kappa[-1] == pytest.approx(limit.log_kappa_cap)
    # A local error of 1e-5 a step, over some 60 steps, most of which the flow damps.
    np.testing.assert_allclose(limit.trajectory.vectors[-1], flow.vectors[-1], atol=2e-4)
    assert np.isnan(limit.trajectory.log1p_time[-1])


def test_a_permutation_of_the_runs_permutes_the_limits(together):
    order = [3, 0, 4, 2, 1]
    permuted = gflow.find_limits([PROBLEMS[i] for i in order], [STARTS[i] for i in order])
    for place, i in enumerate(order):
        assert permuted[place].verdict == together[i].verdict
        np.testing.assert_array_equal(vector(permuted[place]), vector(together[i]))
        assert permuted[place].num_flow_steps == together[i].num_flow_steps


def test_the_width_of_a_program_changes_no_more_than_rounding(together):
    few = gflow.find_limits(PROBLEMS, STARTS, chunk=4)
    for one, other in zip(few, together, strict=True):
        assert one.margin == pytest.approx(other.margin, rel=1e-9)
        if is_strict(one):
            np.testing.assert_allclose(vector(one), vector(other), atol=1e-10)


def test_a_bad_run_among_good_ones_spoils_none(together):
    """Contradictory labels are never separated."""
    x = np.repeat(np.asarray(PROBLEMS[0].dataset.x)[:5], 2, axis=0)
    contradictory = gflow.Dataset(x, np.tile([-1, 1], 5))
    bad = gflow.Problem(
        SQUARED, contradictory, loss=losses.exponential(), perturbation=perturbations.fgm(0.0)
    )
    problems = [PROBLEMS[0], bad, *PROBLEMS[1:]]
    limits = gflow.find_limits(problems, [STARTS[0], *STARTS], max_steps=400)
    assert not limits[1].successful
    assert limits[1].certificate.separated is False
    assert np.isnan(limits[1].certificate.stationarity)
    for one, other in zip([limits[0], *limits[2:]], together, strict=True):
        np.testing.assert_array_equal(vector(one), vector(other))
    with pytest.raises(gflow.LimitFailed) as failure:
        gflow.find_limits(problems[:2], STARTS[:2], max_steps=400, throw=True)
    assert failure.value.limit.problem is bad


@pytest.mark.slow
def test_mixed_structures_come_back_in_order(together):
    """A linear predictor among two-layer networks, and a problem with kinks."""
    linear = networks.linear(3)
    signs = gflow.Problem(
        linear,
        PROBLEMS[0].dataset,
        loss=losses.exponential(),
        perturbation=perturbations.fgsm(0.05),
    )
    mixed = [PROBLEMS[0], problem_of(0, linear), PROBLEMS[1], signs]
    starts = [STARTS[0], linear.init(0), STARTS[1], linear.init(1)]
    limits = gflow.find_limits(mixed, starts)
    assert [limit.problem for limit in limits] == mixed
    for limit, order in ((limits[1], 2), (limits[3], np.inf)):
        exact = gflow.max_margin(PROBLEMS[0].dataset, radius=0.05, order=order)
        np.testing.assert_allclose(vector(limit), np.ravel(exact.direction), atol=1e-9)
    for one, other in zip((limits[0], limits[2]), together, strict=False):
        assert one.margin == pytest.approx(other.margin, rel=1e-9)


def test_an_interrupt_returns_what_has_arrived(monkeypatch):
    """After the first round of implicit steps."""
    segment, calls = batch_flow._segment, []

    def interrupted(runs, goals, lanes, meant, padded, stiff):
        if calls and stiff:
            raise KeyboardInterrupt
        calls.extend([stiff] if stiff else [])
        return segment(runs, goals, lanes, meant, padded, stiff)

    monkeypatch.setattr(batch_flow, "_segment", interrupted)
    limits = gflow.find_limits(PROBLEMS, STARTS)
    results = {limit.result_name for limit in limits}
    assert "interrupted" in results
    assert len(limits) == len(PROBLEMS)
    for limit in limits:
        assert limit.successful == (limit.result_name == "successful")


def test_after_an_interrupt_no_other_run_begins(together, monkeypatch):
    """Neither one of the same structure that is searched by itself, nor one of another."""
    begun = []

    def heard(run):
        begun.append(run)
        return replace(together[0], result=gflow.RESULTS.interrupted)

    monkeypatch.setattr(finding, "_alone", heard)
    signs = gflow.Problem(
        networks.linear(3),
        PROBLEMS[0].dataset,
        loss=losses.exponential(),
        perturbation=perturbations.fgsm(0.05),
    )
    starts = [networks.linear(3).init(seed) for seed in range(3)]
    limits = gflow.find_limits([signs] * 3, starts)
    assert len(begun) == 1 and [one.result_name for one in limits] == ["interrupted"] * 3
    for limit, start in zip(limits[1:], starts[1:], strict=True):
        assert not limit.successful and limit.num_flow_steps == 0
        unit = start[0] / np.linalg.norm(start[0])
        np.testing.assert_allclose(limit.direction[0], unit, rtol=1e-15)


def test_an_interrupt_is_raised_where_nothing_has_been_found(monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(finding, "together", stopped)
    with pytest.raises(KeyboardInterrupt):
        gflow.find_limits(PROBLEMS[:1], STARTS[:1])


def test_every_start_is_looked_at():
    """Runs of one structure share a program, not the checks of their values: what lies beneath a
    mask, and the imaginary part, were dropped from the second one on.
    """
    first, second = map(np.asarray, STARTS[0])
    masked = np.ma.masked_array(first, mask=first > 0)
    for wrong, words in ((masked, "masked"), (first * (1 + 1j), "complex"), (first > 0, "bool")):
        with pytest.raises((TypeError, ValueError), match=rf"run 1: .*{words}"):
            gflow.find_limits(PROBLEMS[:2], [STARTS[0], (wrong, second)])


def test_seconds_that_are_spent_end_every_run():
    limits = gflow.find_limits(PROBLEMS[:2], STARTS[:2], max_seconds=1e-6)
    assert [limit.result_name for limit in limits] == ["seconds_spent"] * 2


def test_progress_is_told(together):
    seen = []
    gflow.find_limits(PROBLEMS, STARTS, progress=seen.append)
    assert seen[-1]["arrived"] == len(PROBLEMS) and seen[-1]["under way"] == 0
    steps = [status["steps"] for status in seen]
    assert steps == sorted(steps) and steps[-1] > 0


@pytest.mark.parametrize(
    ("problems", "starts", "options", "error", "words"),
    [
        (PROBLEMS[:2], STARTS[:1], {}, ValueError, "2 problems and 1 starts"),
        ([SQUARED], STARTS[:1], {}, TypeError, "problems"),
        (PROBLEMS[:1], STARTS[:1], {"chunk": 0}, ValueError, r"find_limits\(chunk=0\)"),
        (PROBLEMS[:1], STARTS[:1], {"mesh": 8}, TypeError, "mesh"),
        (
            PROBLEMS[:1],
            [tuple(np.zeros_like(leaf) for leaf in STARTS[0])],
            {},
            (TypeError, ValueError),
            "`",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(problems, starts, options, error, words):
    with pytest.raises(error, match=words):
        gflow.find_limits(problems, starts, **options)


def test_no_runs_have_no_limits():
    assert gflow.find_limits([], []) == []


ON_MESHES = """
    import jax, numpy as np
    import gflow
    from jax.sharding import Mesh
    from test_batch import RADII, SQUARED, STARTS, is_strict, problem_of, vector

    def same(alone, spread):
        "The number of strict limits, which are the same points."
        strict = 0
        for one, other in zip(alone, spread, strict=True):
            assert one.successful and other.successful and one.verdict == other.verdict
            # Newton's method ends at 1e-12; the margin is the same all along a family.
            assert abs(one.margin / other.margin - 1) < 1e-10
            for limit in (one, other):
                assert limit.polished.residual < 1e-12 and limit.certificate.stationarity < 1e-11
            if is_strict(one) and is_strict(other):
                assert np.linalg.norm(vector(one) - vector(other)) < 1e-10
                strict += 1
        return strict

    assert jax.device_count() == 8
    # Limits of smoothed ReLUs lie in families, of which rounding decides the member.
    smoothed, radii = gflow.networks.mlp((3, 6, 1), smoothing=0.05), (0.0, 0.05)
    problems = [problem_of(i, radius=each, num_examples=16) for i, each in enumerate(RADII)]
    problems += [problem_of(i, smoothed, each, num_examples=16) for i, each in enumerate(radii)]
    starts, count = [*STARTS, smoothed.init(0), smoothed.init(1)], len(STARTS)
    alone = gflow.find_limits(problems, starts)
    families = [limit.verdict.endswith("within a family") for limit in alone]
    assert families == [False] * count + [True] * len(radii)
    runs = Mesh(np.array(jax.devices()), ("runs",))
    both = Mesh(np.reshape(jax.devices(), (2, 4)), ("runs", "examples"))
    assert same(alone[:count], gflow.find_limits(problems[:count], starts[:count], mesh=runs)) >= 3
    assert 3 <= same(alone, gflow.find_limits(problems, starts, mesh=both)) <= count
    print("same limits")
"""


@pytest.mark.slow
def test_meshes_of_eight_devices_find_the_same_limits():
    """Runs over eight; and over two, with the examples over four."""
    here = Path(__file__).parent
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_MESHES)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("same limits"), done.stderr


def test_meshes_that_cannot_be_meant_are_refused():
    """One device stands for three of the examples, and for axes without a meaning."""
    three = SimpleNamespace(axis_names=("runs", "examples"), shape={"runs": 1, "examples": 3})
    three.devices = np.array(jax.devices())
    with pytest.raises(ValueError, match=r"10 examples of problems\[1\] cannot be spread evenly"):
        arguments._check_mesh(three, [problem_of(0, num_examples=9), PROBLEMS[0]])
    with pytest.raises(ValueError, match="has 3 axes"):
        gflow.find_limits(
            PROBLEMS, STARTS, mesh=Mesh(np.reshape(jax.devices(), (1, 1, 1)), ("a", "b", "c"))
        )
    others = SimpleNamespace(devices=np.array([SimpleNamespace(process_index=1)]))
    others.axis_names = ("runs",)
    with pytest.raises(ValueError, match="holds devices of other processes"):
        arguments._check_mesh(others, PROBLEMS)
