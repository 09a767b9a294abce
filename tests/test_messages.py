"""What somebody who is stuck is told: one row for each mistake, and the words that must help.

All rows end before anything is integrated.
"""

import functools
import inspect
from types import SimpleNamespace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow
from gflow import datasets, losses, networks, perturbations
from gflow._signatures import named, nearest

pytestmark = pytest.mark.usefixtures("own_words")

DATA = datasets.gaussian(6, 3, seed=1)
NETWORK = networks.linear(3)
LOSS = losses.logistic()
START = (np.array([[0.5, -0.2, 0.1]]),)
PROBLEM = gflow.Problem(NETWORK, DATA, loss=LOSS, perturbation=perturbations.fgm(0.1))
UNTIL = gflow.Until(log_loss=-1.0)


def custom(apply):
    return gflow.Problem(networks.custom(apply, degree=1), DATA, loss=LOSS)


def integrate(problem=PROBLEM, start=START, **options):
    return gflow.integrate(problem, start, until=UNTIL, **options)


SECOND_ORDER = optax.GradientTransformationExtraArgs(
    lambda params: None, lambda updates, state, params, *, hessian, **_: (updates, state)
)


def hidden(array):
    """A copy whose first entry is masked."""
    mask = np.zeros(np.shape(array), bool)
    mask.flat[0] = True
    return np.ma.masked_array(array, mask)


MISTAKES = {
    # Names that other libraries have
    "fgm(norm=2)": (lambda: perturbations.fgm(0.1, norm=2), TypeError, "perhaps `order`"),
    "pgd(eps=)": (lambda: perturbations.pgd(eps=0.1), TypeError, "perhaps `radius`"),
    "pgd(steps=)": (lambda: perturbations.pgd(0.1, steps=3), TypeError, "perhaps `num_steps`"),
    "fgsm(order=)": (
        lambda: perturbations.fgsm(0.1, order=2),
        TypeError,
        "`fgm(radius, order=...)`",
    ),
    "mlp(activation=)": (
        lambda: networks.mlp((5, 6, 1), activation="relu"),
        TypeError,
        "perhaps `power` is meant. It is ReLU^k",
    ),
    "mlp(hidden=)": (lambda: networks.mlp(hidden=(5, 6, 1)), TypeError, "perhaps `widths`"),
    "Until(loss=)": (lambda: gflow.Until(loss=1e-3), TypeError, "perhaps `log_loss` is meant"),
    "Until(t=)": (lambda: gflow.Until(t=1.0), TypeError, "perhaps `time`"),
    "find_limit(tol=)": (
        lambda: gflow.find_limit(PROBLEM, START, tol=1e-8),
        TypeError,
        "`find_limit(tol=...)`: there is no `tol`; perhaps `tolerance` is meant",
    ),
    "descend(lr=)": (
        lambda: gflow.descend(PROBLEM, START, lr=0.1, num_steps=3),
        TypeError,
        "perhaps `optimizer`",
    ),
    "init(seed=)": (lambda: NETWORK.init(seed=0), TypeError, "`network.init(seed=...)`"),
    "Convolution(kernel_size=)": (
        lambda: networks.Convolution(8, kernel_size=3),
        TypeError,
        "perhaps `size`",
    ),
    "gflow.find_limit_": (lambda: gflow.find_limit_, AttributeError, "perhaps `gflow.find_limit`"),
    # Places
    "mlp(5, 6, 1)": (lambda: networks.mlp(5, 6, 1), TypeError, "perhaps: `mlp((5, 6, 1))`"),
    "Until(-10)": (lambda: gflow.Until(-10), TypeError, "`Until(-10)`: it takes no argument by"),
    "Problem(network, data, loss)": (
        lambda: gflow.Problem(NETWORK, DATA, LOSS),
        TypeError,
        "Name what is meant: `loss=`",
    ),
    "no until": (
        lambda: gflow.integrate(PROBLEM, START),
        TypeError,
        "`until` is missing. It says when to stop: `until=gflow.Until(log_loss=-10.0)`",
    ),
    "no loss": (lambda: gflow.Problem(NETWORK, DATA), TypeError, "gflow.losses.logistic()"),
    # Parts
    "a lambda as loss": (
        lambda: gflow.Problem(NETWORK, DATA, loss=lambda q: jnp.exp(-q)),
        TypeError,
        "subclass of `gflow.losses.AbstractLoss`",
    ),
    "loss by name": (
        lambda: gflow.Problem(NETWORK, DATA, loss="logistics"),
        TypeError,
        "Perhaps `gflow.losses.logistic(...)`",
    ),
    "attack by name": (
        lambda: gflow.Problem(NETWORK, DATA, loss=LOSS, perturbation="PGD"),
        TypeError,
        "Perhaps `gflow.perturbations.pgd(...)`",
    ),
    "a function as network": (
        lambda: gflow.Problem(lambda p, x: p @ x, DATA, loss=LOSS),
        TypeError,
        "`gflow.networks.custom(apply, degree=L)`",
    ),
    "complex outputs": (
        lambda: integrate(custom(lambda p, x: jnp.sum(p * x).astype(complex)), np.ones(3)),
        ValueError,
        "gives complex128 numbers",
    ),
    "rounded outputs": (
        lambda: integrate(custom(lambda p, x: jnp.sum(p * x).astype(int)), np.ones(3)),
        ValueError,
        "gives int64 numbers",
    ),
    # Parameters
    "wider": (
        lambda: integrate(
            gflow.Problem(networks.mlp((3, 8, 1)), DATA, loss=LOSS),
            (np.ones((6, 3)), np.ones((1, 6))),
        ),
        ValueError,
        "shapes [(6, 3), (1, 6)], but the network's are [(8, 3), (1, 8)]",
    ),
    "masked weights": (lambda: integrate(start=(hidden(START[0]),)), ValueError, "`params`: mask"),
    # Masks
    "masked x": (lambda: gflow.Dataset(hidden(DATA.x), DATA.y), ValueError, "`x`: masked entries"),
    "masked y": (lambda: gflow.Dataset(DATA.x, hidden(DATA.y)), ValueError, "`y`: masked entries"),
    "masked rows": (
        lambda: gflow.Dataset([hidden(row) for row in DATA.x], DATA.y),
        ValueError,
        "masked entries (6)",
    ),
    "masked radius": (lambda: perturbations.fgm(np.ma.masked), ValueError, "`radius`: masked"),
    "masked radius of max_margin": (
        lambda: gflow.max_margin(DATA, radius=np.ma.masked),
        ValueError,
        "radius=...)`: masked",
    ),
    "masked target": (lambda: gflow.Until(time=np.ma.masked), TypeError, "one real number"),
    # Solvers and optimizers
    "KenCarp4": (
        lambda: integrate(solver=diffrax.KenCarp4()),
        TypeError,
        "`solver=KenCarp4()` takes no plain ODE: it needs its terms apart",
    ),
    "needs more": (
        lambda: gflow.descend(
            PROBLEM,
            START,
            optax.GradientTransformationExtraArgs(
                lambda params: None,
                lambda updates, state, params, *, hessian, **_: (updates, state),
            ),
            num_steps=2,
        ),
        TypeError,
        "'hessian'",
    ),
    # Truth values
    "descend(mean=1)": (
        lambda: gflow.descend(PROBLEM, START, optax.sgd(0.1), num_steps=3, mean=1),
        TypeError,
        "`descend(mean=1)` must be True or False",
    ),
    "escape='no'": (
        lambda: gflow.find_limit(PROBLEM, START, escape="no"),
        TypeError,
        "`find_limit(escape='no')` must be True or False",
    ),
    "throw=0": (lambda: integrate(throw=0), TypeError, "`integrate(throw=0)` must be True or F"),
    "sweep(escape=1)": (
        lambda: gflow.sweep(lambda a: None, {"a": [1]}, escape=1),
        TypeError,
        "`sweep(escape=1)` must be True or False",
    ),
    "find_limit(progress='a')": (
        lambda: gflow.find_limit(PROBLEM, START, progress="a"),
        TypeError,
        "`find_limit(progress='a')`",
    ),
    # Numbers of other kinds, and beyond floats
    "power=10**400": (lambda: networks.mlp((3, 1), power=10**400), ValueError, "finite"),
    "degree=10**400": (lambda: networks.custom(jnp.dot, degree=10**400), ValueError, "finite"),
    "radius=10**400": (lambda: gflow.max_margin(DATA, radius=10**400), ValueError, "finite"),
    "weights 10**400": (
        lambda: integrate(custom(lambda p, x: p * jnp.sum(x)), 10**400),
        ValueError,
        "`params` holds NaN or infinity",
    ),
    "radius='1'": (lambda: gflow.max_margin(DATA, radius="1"), TypeError, "is not a number"),
    "num_outputs=[2]": (
        lambda: networks.linear(3, num_outputs=np.array([2, 3])),
        TypeError,
        "must be integers",
    ),
    "gaussian(n=6.0)": (
        lambda: datasets.gaussian(6.0, 3),
        TypeError,
        "`gaussian(n=6.0, d=3)`: both must be integers",
    ),
    "gaussian(gap='1')": (
        lambda: datasets.gaussian(6, 3, gap="1"),
        TypeError,
        "`gaussian(gap='1')` must be one real number",
    ),
    "gaussian(seed=None)": (
        lambda: datasets.gaussian(6, 3, seed=None),
        TypeError,
        "`gaussian(seed=None)` must be an integer",
    ),
    "random_labels(seed=-1)": (
        lambda: datasets.random_labels(6, 3, seed=-1),
        ValueError,
        "a seed is not negative",
    ),
    "soudry(2.0)": (lambda: datasets.soudry(2.0), TypeError, "`soudry(num_random=2.0)`"),
    "digits(classes=3)": (
        lambda: datasets.digits(classes=3),
        TypeError,
        "`digits(classes=3)`: None, or a sequence of digits",
    ),
    "mnist(limit=2.5)": (
        lambda: datasets.mnist(limit=2.5),
        ValueError,
        "`mnist(limit=2.5)` must be None or an integer",
    ),
    "descend(seed='a')": (
        lambda: gflow.descend(PROBLEM, START, optax.sgd(0.1), num_steps=2, seed="a"),
        TypeError,
        "`descend(seed='a')`",
    ),
    "Krylov(tolerance='a')": (
        lambda: gflow.Krylov(tolerance="a"),
        ValueError,
        "`Krylov(tolerance='a')`",
    ),
    "damping='a'": (
        lambda: gflow.RungeKuttaChebyshev(damping="a"),
        ValueError,
        "`RungeKuttaChebyshev(damping='a')`",
    ),
    "backward_error_flow(tolerance='a')": (
        lambda: gflow.backward_error_flow(
            PROBLEM, START, step_size=0.1, num_steps=2, tolerance="a"
        ),
        ValueError,
        "`backward_error_flow(tolerance='a')`",
    ),
    # Words and things in the place of others
    "gradient=[...]": (
        lambda: gflow.Problem(NETWORK, DATA, loss=LOSS, gradient=np.array([1.0, 2.0])),
        ValueError,
        "choose 'frozen' or 'total'",
    ),
    "descend(None)": (
        lambda: gflow.descend(None, START, optax.sgd(0.1), num_steps=2),
        TypeError,
        "expected a `gflow.Problem`",
    ),
    "solver=Krylov": (
        lambda: integrate(solver=gflow.Krylov()),
        TypeError,
        "`solver=gflow.Rosenbrock(linear_solver=gflow.Krylov(...))`",
    ),
    "a limit as start": (
        lambda: integrate(start=SimpleNamespace(direction=START, basin="confirmed")),
        TypeError,
        "`limit.params(log_kappa=...)`",
    ),
    "linear_solver='lu'": (
        lambda: gflow.Rosenbrock(linear_solver="lu"),
        TypeError,
        "`Rosenbrock(linear_solver='lu')`: None, a `gflow.Krylov`",
    ),
    "one problem for a list": (
        lambda: gflow.find_limits(PROBLEM, [START]),
        TypeError,
        "a Problem is no list; give one for each run",
    ),
    "sweep(settings=0-d)": (
        lambda: gflow.sweep(lambda a: None, np.array(3)),
        TypeError,
        "give a mapping of lists",
    ),
    "sweep(batch='a')": (
        lambda: gflow.sweep(lambda a: None, {"a": [1]}, batch="a"),
        ValueError,
        "`sweep(batch='a')` must be None or a positive integer",
    ),
    "coefficients='a'": (
        lambda: gflow.certify(PROBLEM, START, coefficients="a"),
        TypeError,
        "`certify(coefficients=...)` is no array of numbers",
    ),
    "measure('margin')": (
        lambda: run().measure("margin"),
        TypeError,
        "`trajectory.measure('margin')`: give a function",
    ),
    "sharpness_along(3)": (
        lambda: gflow.sharpness_along(3),
        TypeError,
        "`sharpness_along(3)`: give a trajectory",
    ),
    # Under transformations
    "jit integrate": (lambda: jax.jit(lambda p: integrate(start=p).margin)(START), TypeError, "`p"),
    "jit a constant": (lambda: jax.jit(lambda: integrate().margin)(), TypeError, "this call: "),
    "vmap find_limit": (
        lambda: jax.vmap(lambda p: gflow.find_limit(PROBLEM, p).margin)((np.ones((2, 1, 3)),)),
        TypeError,
        "in a loop over several",
    ),
    "jit certify": (
        lambda: jax.jit(lambda p: gflow.certify(PROBLEM, p).stationarity)(START),
        TypeError,
        "traced by `jax.jit`",
    ),
    "jit descend": (
        lambda: jax.jit(lambda p: gflow.descend(PROBLEM, p, optax.sgd(0.1), num_steps=2).params)(
            START
        ),
        TypeError,
        "traced by `jax.jit`",
    ),
    "grad by the radius": (
        lambda: jax.grad(
            lambda radius: (
                gflow.find_limit(
                    gflow.Problem(NETWORK, DATA, loss=LOSS, perturbation=perturbations.fgm(radius)),
                    START,
                ).margin
            )
        )(0.1),
        TypeError,
        "`gflow.radius_sensitivity`",
    ),
    "grad by x": (
        lambda: jax.grad(lambda x: gflow.Dataset(x, DATA.y).x.sum())(jnp.asarray(DATA.x)),
        TypeError,
        "`gflow.data_sensitivity`",
    ),
    "grad by a target": (
        lambda: jax.grad(lambda time: gflow.Until(time=time).log1p_time)(1.0),
        TypeError,
        "traced",
    ),
    "grad of max_margin": (
        lambda: jax.grad(lambda radius: gflow.max_margin(DATA, radius=radius).margin)(0.1),
        TypeError,
        "traced",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(call, error, words):
    with pytest.raises(error) as refusal:
        call()
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


OF_POINTS = [
    "accuracy",
    "at_params",
    "euler_error",
    "normalized_margin",
    "num_support",
    "robust_accuracy",
    "scale_invariance_error",
    "sharpness",
    "smoothed_margin",
]
OF_PARAMS = [
    "balancedness",
    "ji_telgarsky_bound",
    "ji_telgarsky_excess",
    "layer_alignment",
    "stable_ranks",
]


class _Limit:
    """What tells a limit; a real one would have to be searched for."""

    direction, basin = START, "confirmed"


NO_PARAMS = {
    "limit": (_Limit, TypeError, "holds a `Limit`. Give its direction, `limit.direction`"),
    "run": (lambda: run(), TypeError, "holds a `Trajectory`. Give one of its points"),
    "data": (lambda: "data", TypeError, "holds a str, expected a pytree of arrays"),
    "nothing": (lambda: None, TypeError, "`params` holds no arrays"),
    "truth": (lambda: (True,), TypeError, "holds a bool"),
}
OTHER = (np.ones((1, 4)),)


@pytest.mark.parametrize(("make", "error", "words"), NO_PARAMS.values(), ids=NO_PARAMS)
def test_what_is_measured_must_be_parameters(make, error, words):
    wrong = make()
    calls = {
        **{f"`{n}(problem, params)`": _measure(n, PROBLEM, wrong) for n in OF_POINTS},
        **{f"`{n}(params)`": _measure(n, wrong) for n in OF_PARAMS},
        "`direction_distance(left, right)`": _measure("direction_distance", START, wrong),
        "`sine(direction, vector)`": _measure("sine", START, wrong),
        "a method of `Problem`": lambda: PROBLEM.margins(wrong),
    }
    for name, call in calls.items():
        with pytest.raises(error) as refusal:
            call()
        assert name in str(refusal.value)
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_parameters_of_another_network_are_not_measured():
    for name in OF_POINTS:
        with pytest.raises(ValueError, match=r"leaves of shapes \[\(1, 4\)\], but the network's"):
            _measure(name, PROBLEM, OTHER)()
    for method in (PROBLEM.margins, PROBLEM.clean_margins, PROBLEM.log_loss, PROBLEM.gradient):
        with pytest.raises(ValueError, match="the network's are"):
            method(OTHER)
    for name in ("direction_distance", "sine"):
        with pytest.raises(ValueError, match="both must be parameters of one network"):
            _measure(name, START, OTHER)()


@pytest.mark.parametrize("name", OF_POINTS)
def test_a_problem_comes_first(name):
    with pytest.raises(TypeError, match="the two are swapped"):
        _measure(name, START, PROBLEM)()
    with pytest.raises(TypeError, match="what came first is a Dataset"):
        _measure(name, DATA, START)()


def test_measures_are_checked_while_a_function_of_the_user_is_traced():
    with pytest.raises(ValueError, match="the network's are"):
        jax.jit(lambda p: gflow.measures.normalized_margin(PROBLEM, p))(OTHER)
    several = (np.ones((2, 1, 3)),)  # each has the network's shapes
    one = functools.partial(gflow.measures.normalized_margin, PROBLEM)
    assert jax.vmap(one)(several).shape == (2,)


def _measure(name, *arguments):
    return lambda: getattr(gflow.measures, name)(*arguments)


MISUSED = {
    "robust_accuracy(0.1)": (
        lambda: gflow.measures.robust_accuracy(PROBLEM, START, 0.1),
        TypeError,
        "`robust_accuracy(...)`: `attack` is 0.1, expected what a function of `gflow.pert",
    ),
    "robust_accuracy(fgm)": (
        lambda: gflow.measures.robust_accuracy(PROBLEM, START, perturbations.fgm),
        TypeError,
        "Call it first: `fgm(...)`",
    ),
    "accuracy(dataset=x)": (
        lambda: gflow.measures.accuracy(PROBLEM, START, dataset=DATA.x),
        TypeError,
        "`dataset` is an array of the shape (6, 3), expected what `gflow.Dataset(x, y)` makes",
    ),
    "num_support(tolerance=-1)": (
        lambda: gflow.measures.num_support(PROBLEM, START, tolerance=-1.0),
        ValueError,
        "`tolerance=-1.0`",
    ),
    "balanced_margin('a')": (
        lambda: gflow.measures.balanced_margin("a", 2),
        TypeError,
        "`balanced_margin('a', ...)`",
    ),
    "balanced_margin(depth=0)": (
        lambda: gflow.measures.balanced_margin(0.1, 0),
        ValueError,
        "`balanced_margin(..., 0)`",
    ),
    "margins_at(one row)": (
        lambda: PROBLEM.margins_at(START, np.zeros(3)),
        ValueError,
        "`delta` is (3,), expected an array of the shape (6, 3)",
    ),
    "compare(descent, flow)": (
        lambda: gflow.compare(run(), run()),
        ValueError,
        "the first is a run of descent. The flow comes first",
    ),
    "measure(an attack)": (
        lambda: run().measure(perturbations.fgm(0.1)),
        TypeError,
        "give a function of a problem and a direction",
    ),
    "Sweep.load(3)": (lambda: gflow.Sweep.load(3), TypeError, "`Sweep.load(3)`: give the path"),
    "Until(time=pytree)": (
        lambda: gflow.Until(time=(np.ones((1, 3)), np.ones(2))),
        TypeError,
        "one real number",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), MISUSED.values(), ids=MISUSED)
def test_misused(call, error, words):
    test_mistakes(call, error, words)


@functools.cache
def run():
    return gflow.descend(PROBLEM, START, optax.sgd(0.1), num_steps=2)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("", ValueError, "`trajectory.save('')`: this names no file. Give one, such as 'run.npz'"),
        (".", ValueError, "names no file"),
        ("folder/", ValueError, "names no file"),
        ("missing/run", FileNotFoundError, "there is no folder `missing`. Make it first"),
        (3, TypeError, "give the path of a file, such as 'run.npz'"),
    ],
)
def test_where_nothing_can_be_saved(path, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as refusal:
        run().save(path)
    assert words in str(refusal.value)
    assert not list(tmp_path.iterdir())


# Radii in other units

PIXELS = gflow.Dataset(
    np.random.default_rng(0).integers(0, 256, (20, 3)), np.where(np.arange(20) % 2, 1, -1)
)
FGSM, FGM = perturbations.fgsm, perturbations.fgm


@pytest.mark.parametrize(
    ("data", "attack", "words"),
    [
        (PIXELS, FGSM(16 / 255), "minute beside inputs from 0 to 25"),
        (PIXELS, perturbations.pgd(8 / 255), "pixels scaled to [0, 1]"),
        (PIXELS, FGM(0.5), "minute"),
        (PIXELS, FGSM(500.0), "exceeds the diameter of the data in the attack's l_inf norm"),
        (DATA, FGM(16.0), "exceeds the diameter"),
        # At equal places in l_2 and l_inf: sqrt(2) and 1.
        (gflow.Dataset(np.eye(3), [1, -1, 1]), FGM(1.42), "l_2 norm"),
        (gflow.Dataset(np.eye(3), [1, -1, 1]), FGSM(1.01), "l_inf norm"),
    ],
)
def test_radii_in_other_units_are_warned_of(data, attack, words):
    with pytest.warns(UserWarning) as caught:
        gflow.Problem(NETWORK, data, loss=LOSS, perturbation=attack)
    assert len(caught) == 1 and words in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("data", "attack"),
    [
        (PIXELS, FGSM(16.0)),
        (PIXELS, perturbations.clean()),
        (PIXELS, FGM(0.0)),
        (gflow.Dataset(PIXELS.x / 255, PIXELS.y), FGSM(16 / 255)),
        (gflow.Dataset(PIXELS.x - 128, PIXELS.y), FGSM(0.5)),
        (gflow.Dataset(np.eye(3), [1, -1, 1]), FGM(1.41)),
        (gflow.Dataset(np.eye(3), [1, -1, 1]), FGSM(0.99)),
        (gflow.Dataset(1e-12 * DATA.x, DATA.y), FGM(1e-13)),
        (gflow.Dataset(1e12 * DATA.x, DATA.y), FGM(1e11)),
        (DATA, FGM(1e-9)),
    ],
)
def test_ordinary_radii_are_not(data, attack):
    gflow.Problem(NETWORK, data, loss=LOSS, perturbation=attack)  # warnings are errors


def test_a_traced_radius_has_no_units_yet():
    @jax.jit
    def margins(radius):
        return gflow.Problem(NETWORK, DATA, loss=LOSS, perturbation=FGM(radius)).margins(START)

    assert np.isfinite(margins(100.0)).all()


# Every public function

PUBLIC = {
    f"{name}.{key}" if name else key: getattr(home, key)
    for name, home, keys in [
        ("", gflow, gflow.__all__),
        ("networks", networks, networks.__all__),
        ("perturbations", perturbations, perturbations.__all__),
        ("losses", losses, losses.__all__),
        ("datasets", datasets, datasets.__all__),
    ]
    for key in keys
    if not key.startswith("Abstract") and callable(getattr(home, key))
}


def is_made_by_a_function(made):
    """Whether it is a network, a perturbation or a loss, each of which has a function of its own
    that makes it; or a type.
    """
    parts = networks.AbstractNetwork, perturbations.AbstractPerturbation, losses.AbstractLoss
    return issubclass(made, parts) if isinstance(made, type) else not inspect.isfunction(made)


# Made by gflow alone.
MADE = {
    "Certificate",
    "Comparison",
    "Limit",
    "LimitFailed",
    "MaxMargin",
    "RESULTS",
    "RunFailed",
    "Sweep",
    "Trajectory",
    "networks.Decided",
}
CALLED = sorted(
    name for name, made in PUBLIC.items() if name not in MADE and not is_made_by_a_function(made)
)


@pytest.mark.parametrize("name", CALLED)
def test_every_wrong_name_is_answered_with_the_right_one(name):
    function = PUBLIC[name]
    parameters = inspect.signature(function).parameters.values()
    named = [each for each in parameters if each.kind is not each.VAR_POSITIONAL]
    known = [each.name for each in named if each.name != "self"]
    with pytest.raises(TypeError) as refusal:
        function(qqqq=1)
    assert "there is no `qqqq`." in str(refusal.value)
    assert all(f"`{key}`" in str(refusal.value) for key in known)
    for key in known:
        if len(key) > 4:
            wrong = key[:2] + key[3:]
            with pytest.raises(TypeError, match=f"there is no `{wrong}`; perhaps `{key}`"):
                function(**{wrong: 1})
    assert inspect.getdoc(function)


def test_names_are_found_by_meaning_and_by_spelling():
    assert nearest("eps", ["radius", "order"]) == "radius"
    assert nearest("Radius", ["radius", "order"]) == "radius"
    assert nearest("oder", ["radius", "order"]) == "order"
    assert nearest("colour", ["radius", "order"]) is None
    assert nearest("eps", ["x", "y"]) is None


def test_a_named_function_stays_what_it_was():
    def function(a: int, /, b: int = 2, *, c: int = 3) -> int:
        """The sum."""
        return a + 10 * b + 100 * c

    wrapped = named()(function)
    assert inspect.signature(wrapped) == inspect.signature(function)
    assert wrapped.__doc__ == "The sum." and wrapped.__name__ == "function"
    assert wrapped(1) == 321 and wrapped(1, 5, c=0) == 51

    def raising():
        raise TypeError("of its own")

    with pytest.raises(TypeError, match=r"^of its own$"):
        named()(raising)()
    with pytest.raises(TypeError, match=r"multiple values for argument 'b'"):
        wrapped(1, 2, b=3)
