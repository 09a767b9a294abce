"""The targets of a run, and the distance to them."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._checks import check_untraced, is_real
from gflow._description import shown
from gflow._methods import light
from gflow._signatures import named
from gflow._typing import Scalar
from gflow.measures import MAX_LOG_KAPPA, PointMeasures

LANDED = 1e-13
"""The accuracy with which targets are met: distances are relative, and this is their rounding."""

Number = Float[Array, ""] | Float[np.ndarray, ""]
"""One number, of a compiled program or on the host."""


class Until(eqx.Module):
    """What a run is to reach; it ends where the first of them is hit.

    Args:
        log_kappa: `L log |params|`, from below; above 700 only with a `kappa_cap`.
        log_loss: `log sum_i l(q_i)`, from above; the loss is a sum over examples.
        time: t of `dparams/dt = -grad(sum loss)`, > 0.
        stationarity: relative stationarity `|u - c sum_i p_i grad q_i|` with the flow's own
            multipliers, in (0, 1).
        logits: the smallest margin of the parameters themselves, `kappa min_i q_i(u)`, from below,
            > 0. Unlike log kappa it does not depend on the units of the data or on the depth.
        accuracy: a target counts as met this close to it, before it or past it, relative to the
            target (to 1, if its log is smaller). With the default the last step ends on the target;
            a larger one, such as 0.1, saves the steps that are made only for that.

    Raises:
        TypeError: a target is no number.
        ValueError: nothing is asked for, or a value that cannot be reached.
    """

    log_kappa: Any
    log_loss: Any
    log1p_time: Any
    stationarity: Any
    log_logits: Any
    accuracy: Any

    @named(loss="`log_loss` is the natural logarithm of the loss, summed over examples.")
    def __init__(
        self,
        *,
        log_kappa: float | None = None,
        log_loss: float | None = None,
        time: float | None = None,
        stationarity: float | None = None,
        logits: float | None = None,
        accuracy: float = LANDED,
    ):
        given = {
            "log_kappa": log_kappa,
            "log_loss": log_loss,
            "time": time,
            "stationarity": stationarity,
            "logits": logits,
        }
        _check(given)
        # Targets that were not asked for are numbers that no run reaches. So every `Until` has the
        # same structure, and no program is compiled again for other targets.
        self.log_kappa = _number(log_kappa, math.inf)
        self.log_loss = _number(log_loss, -math.inf)
        self.log1p_time = np.log1p(_number(time, math.inf))
        self.stationarity = _number(stationarity, 0.0)
        self.log_logits = np.log(_number(logits, math.inf))
        self.accuracy = _checked_accuracy(accuracy)

    def __repr__(self) -> str:
        return shown(self)

    def as_dict(self) -> dict[str, float]:
        """The targets that were asked for; time as `log1p_time`."""
        names = ("log_kappa", "log_loss", "log1p_time", "stationarity", "log_logits")
        targets = {name: float(getattr(self, name)) for name in names}
        unset = {"stationarity": 0.0}
        return {k: v for k, v in targets.items() if math.isfinite(v) and v != unset.get(k)}

    @property
    def needs_margins(self) -> Any:
        """Whether the margins have to be evaluated to know whether to stop."""
        by_loss = (self.log_loss > -math.inf) | (self.log_logits < math.inf)
        return by_loss | (self.stationarity > 0.0)

    @light
    def remaining(
        self,
        log_kappa: Scalar,
        log1p_time: Scalar,
        log_loss: Scalar,
        stationarity: Scalar,
        margin: Scalar,
        ceiling: Scalar = MAX_LOG_KAPPA,
        *,
        xp: Any = jnp,
    ) -> Any:
        """Distance to each target, relative to it, positive until it is reached. Shape (targets,).

        The order is that of `TARGETS`. `log_loss` is that of `known_log_loss`, `margin` the
        smallest one at unit norm; `ceiling` is the log kappa that counts as overflow; `xp` is NumPy
        for numbers on the host. A distance that is NaN counts as infinite.
        """
        # A stationarity of exactly 0 is below any target.
        log_ratio = xp.log(xp.maximum(stationarity, 1e-300)) - xp.log(
            xp.maximum(self.stationarity, 1e-320)
        )
        each = xp.stack(
            [
                _relative(xp, self.log_kappa, self.log_kappa - log_kappa),
                _relative(xp, self.log_loss, log_loss - self.log_loss),
                _relative(xp, self.log1p_time, self.log1p_time - log1p_time),
                xp.where(self.stationarity > 0, log_ratio, xp.inf),
                _below_logits(xp, self.log_logits, log_kappa, margin),
                xp.where(xp.isfinite(ceiling), 1.0 - log_kappa / ceiling, xp.inf),
            ]
        )
        return xp.where(xp.isnan(each), xp.inf, each)


def known_log_loss(measures: PointMeasures, *, xp: Any = jnp) -> Number:
    """`log sum_i l(q_i)`, also where kappa overflows.

    Where it does, the result is `-exp(log_minus_log_loss)`, possibly minus infinity, if the loss is
    below 1; otherwise plus infinity, since kappa multiplies a margin that is not positive.
    """
    size = measures.log_minus_log_loss
    beyond = xp.where(xp.isnan(size), xp.inf, -xp.exp(xp.nan_to_num(size)))
    return xp.where(xp.isnan(measures.log_loss), beyond, measures.log_loss)


TARGETS = ("log_kappa", "log_loss", "time", "stationarity", "logits", "kappa_overflow")
"""Names of the entries of `Until.remaining`."""


def _below_logits(xp: Any, log_logits: Scalar, log_kappa: Scalar, margin: Scalar) -> Number:
    """`1 - kappa margin / logits`, infinite where no logits are asked for."""
    # Bounded, so that exp does not overflow: far beyond the target the distance does not matter.
    ratio = xp.exp(xp.minimum(log_kappa - log_logits, MAX_LOG_KAPPA))
    return xp.where(xp.isfinite(log_logits), 1.0 - ratio * margin, xp.inf)


def _relative(xp: Any, target: Scalar, difference: Scalar) -> Number:
    scale = xp.maximum(xp.abs(target), 1.0)
    return xp.where(xp.isfinite(target), difference / scale, xp.inf)


def _number(value: float | None, default: float) -> np.ndarray:
    return np.asarray(default if value is None else value, np.float64)


def _check(given: dict[str, float | None]) -> None:
    if all(value is None for value in given.values()):
        raise ValueError(
            "`Until()` asks for nothing, and the flow never ends by itself. Give at least one of "
            "`log_kappa`, `log_loss`, `time`, `stationarity` and `logits`."
        )
    for name, value in given.items():
        check_untraced(value, f"`Until({name}=...)`")
        if value is not None and not is_real(value):
            raise TypeError(f"`Until({name}={value!r})` must be one real number.")
        if value is not None and not np.isfinite(value):
            raise ValueError(f"`Until({name}={value!r})` must be finite.")
    time, stationarity, logits = given["time"], given["stationarity"], given["logits"]
    if time is not None and time <= 0:
        raise ValueError(f"`Until(time={time!r})` must be positive: the flow starts at time 0.")
    if logits is not None and logits <= 0:
        raise ValueError(
            f"`Until(logits={logits!r})` must be positive: it is the smallest margin that the "
            "parameters are to have, and margins grow from zero once the examples are separated."
        )
    if stationarity is not None and not 0 < stationarity < 1:
        raise ValueError(
            f"`Until(stationarity={stationarity!r})` must lie between 0 and 1: it is the sine of "
            "an angle."
        )


def _checked_accuracy(value: Any) -> np.ndarray:
    if not is_real(value):
        raise TypeError(f"`Until(accuracy={value!r})` must be one real number.")
    if not LANDED <= value < 1:
        raise ValueError(f"`Until(accuracy={value!r})` must lie between {LANDED:g} and 1.")
    return np.asarray(value, np.float64)


NEVER = Until(log_kappa=1e300)
"""A target that no run reaches."""
