"""When to stop."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._numerics import check_untraced, is_real
from gflow._signatures import named
from gflow._typing import Scalar
from gflow.measures import MAX_LOG_KAPPA

LANDED = 1e-13
"""The accuracy with which targets are met: distances are relative, and this is their rounding."""


class Until(eqx.Module):
    """What a run is to reach; it ends where the first of them is hit.

    Args:
        log_kappa: `L log |params|`, from below; above 700 only with a `kappa_cap`.
        log_loss: `log sum_i l(q_i)`, from above; the loss is a sum over examples.
        time: t of `dparams/dt = -grad(sum loss)`, > 0.
        stationarity: relative stationarity `|u - c sum_i p_i grad q_i|` with the flow's own
            multipliers, in (0, 1).
        accuracy: a target counts as met this close to it, before it or past it, relative to the
            target (to 1, if its log is smaller). The default lands on it; steps made only to land
            are saved by a larger one, such as 0.1.

    Raises:
        TypeError: a target is no number.
        ValueError: nothing is asked for, or a value that cannot be reached.
    """

    log_kappa: Any
    log_loss: Any
    log1p_time: Any
    stationarity: Any
    accuracy: Any

    @named(loss="`log_loss` is the natural logarithm of the loss, summed over examples.")
    def __init__(
        self,
        *,
        log_kappa: float | None = None,
        log_loss: float | None = None,
        time: float | None = None,
        stationarity: float | None = None,
        accuracy: float = LANDED,
    ):
        given = {
            "log_kappa": log_kappa,
            "log_loss": log_loss,
            "time": time,
            "stationarity": stationarity,
        }
        _check(given)
        # Targets that were not asked for lie where nothing reaches them, so that every `Until` has
        # one structure and no run is compiled twice.
        self.log_kappa = _number(log_kappa, math.inf)
        self.log_loss = _number(log_loss, -math.inf)
        self.log1p_time = np.log1p(_number(time, math.inf))
        self.stationarity = _number(stationarity, 0.0)
        self.accuracy = _checked_accuracy(accuracy)

    def as_dict(self) -> dict[str, float]:
        """The targets that were asked for; time as `log1p_time`."""
        names = ("log_kappa", "log_loss", "log1p_time", "stationarity")
        targets = {name: float(getattr(self, name)) for name in names}
        unset = {"stationarity": 0.0}
        return {k: v for k, v in targets.items() if math.isfinite(v) and v != unset.get(k)}

    @property
    def needs_margins(self) -> Any:
        """Whether the loss or the stationarity has to be evaluated to know whether to stop."""
        return (self.log_loss > -math.inf) | (self.stationarity > 0.0)

    def remaining(
        self,
        log_kappa: Scalar,
        log1p_time: Scalar,
        log_loss: Scalar,
        stationarity: Scalar,
        ceiling: Scalar = MAX_LOG_KAPPA,
    ) -> Float[Array, " targets"]:
        """Distance to each target, relative to it, positive until it is reached.

        The order is that of `TARGETS`. `ceiling` is the log kappa that counts as overflow;
        where there is none, a log-loss that is NaN lies below the range of floating-point numbers.
        """
        unknown = jnp.where(jnp.isfinite(ceiling), 0.0, -1e300)
        log_loss = jnp.where(jnp.isnan(log_loss), unknown, log_loss)
        # A stationarity of exactly 0 is below any target.
        log_ratio = jnp.log(jnp.maximum(stationarity, 1e-300)) - jnp.log(
            jnp.maximum(self.stationarity, 1e-320)
        )
        return jnp.stack(
            [
                _relative(self.log_kappa, self.log_kappa - log_kappa),
                _relative(self.log_loss, log_loss - self.log_loss),
                _relative(self.log1p_time, self.log1p_time - log1p_time),
                jnp.where(self.stationarity > 0, log_ratio, jnp.inf),
                jnp.where(jnp.isfinite(ceiling), 1.0 - log_kappa / ceiling, jnp.inf),
            ]
        )


TARGETS = ("log_kappa", "log_loss", "time", "stationarity", "kappa_overflow")
"""Names of the entries of `Until.remaining`."""


def _relative(target: Scalar, difference: Scalar) -> Float[Array, ""]:
    scale = jnp.maximum(jnp.abs(target), 1.0)
    return jnp.where(jnp.isfinite(target), difference / scale, jnp.inf)


def _number(value: float | None, default: float) -> np.ndarray:
    return np.asarray(default if value is None else value, np.float64)


def _check(given: dict[str, float | None]) -> None:
    if all(value is None for value in given.values()):
        raise ValueError(
            "`Until()` asks for nothing, and the flow never ends by itself. Give at least one of "
            "`log_kappa`, `log_loss`, `time` and `stationarity`."
        )
    for name, value in given.items():
        check_untraced(value, f"`Until({name}=...)`")
        if value is not None and not is_real(value):
            raise TypeError(f"`Until({name}={value!r})` must be one real number.")
        if value is not None and not np.isfinite(value):
            raise ValueError(f"`Until({name}={value!r})` must be finite.")
    time, stationarity = given["time"], given["stationarity"]
    if time is not None and time <= 0:
        raise ValueError(f"`Until(time={time!r})` must be positive: the flow starts at time 0.")
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
"""What no run reaches."""
