"""`--quick`: a job cut down to see whether it runs at all."""

from gflow import configuration as tables
from gflow.configuration import Configuration

NUM_EXAMPLES = 24
_WIDTH = 4
_NUM_STEPS = 2
_LOG_LOSS = 0.0
_DESCENT_STEPS = 100
# A flow that does not come to the loss would go on for minutes; one that does needs some 100 steps.
_FLOW_STEPS = 200


def quick(configuration: Configuration) -> Configuration:
    """The same networks and perturbations, narrower and shorter, up to a loss of 1; no limits."""
    return configuration.model_copy(
        update={
            "network": [_narrow(table) for table in configuration.network],
            "perturbation": [_short(table) for table in configuration.perturbation],
            "until": tables.UntilTable(log_loss=_LOG_LOSS),
            "solver": configuration.solver.model_copy(
                update={"max_steps": min(configuration.solver.max_steps, _FLOW_STEPS)}
            ),
            "limit": configuration.limit.model_copy(update={"enabled": False}),
            "descent": _shorter(configuration.descent),
        }
    )


def _narrow(table: tables.Network) -> tables.Network:
    narrowed = {
        name: _at_most(getattr(table, name), _WIDTH)
        for name in ("hidden", "channels")
        if hasattr(table, name)
    }
    return table.model_copy(update=narrowed)


def _at_most(widths: int | list[int], most: int) -> int | list[int]:
    """A width, or each of a list, cut down to `most`."""
    return min(widths, most) if isinstance(widths, int) else [min(one, most) for one in widths]


def _shorter(table: tables.DescentTable) -> tables.DescentTable:
    size = None if table.batch_size is None else min(table.batch_size, NUM_EXAMPLES)
    steps = min(table.num_steps, _DESCENT_STEPS)
    return table.model_copy(update={"batch_size": size, "num_steps": steps})


def _short(table: tables.Perturbation) -> tables.Perturbation:
    num_steps = getattr(table, "num_steps", None)
    if num_steps is None:
        return table
    return table.model_copy(update={"num_steps": min(num_steps, _NUM_STEPS)})
