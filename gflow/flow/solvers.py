"""The solvers of the flow: fitted to it, by name, and the two that `integrate` chooses itself."""

from functools import singledispatch

import diffrax
import equinox as eqx

from gflow._description import storable
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.control import FlowController
from gflow.stiff import SOLVERS
from gflow.stiff.rosenbrock import Rosenbrock

# It is stored with the checkpoint of a run.
storable("ClockedRosenbrock")(ClockedRosenbrock)


@singledispatch
def fitted(solver: diffrax.AbstractSolver, tolerance: float) -> diffrax.AbstractSolver:
    """The solver as a flow with this tolerance uses it: as it is, unless a row here says more."""
    del tolerance
    return solver


@fitted.register
def _(solver: Rosenbrock, tolerance: float) -> diffrax.AbstractSolver:
    """The method with physical time by quadrature and the margins as unknowns of their own."""
    linear_solver = solver.linear_solver
    return ClockedRosenbrock(solver.method, linear_solver=linear_solver, tolerance=tolerance)


def with_tolerances(
    solver: diffrax.AbstractSolver, controller: FlowController
) -> diffrax.AbstractSolver:
    """The solver; an implicit one of diffrax with the tolerances of the controller for its
    equations, where it has none of its own.
    """
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    unnamed = diffrax.with_stepsize_controller_tols(diffrax.VeryChord)().rtol
    names = ("rtol", "atol", "norm")
    open_ = [name for name in names if getattr(solver.root_finder, name) is unnamed]
    if not open_:
        return solver
    return eqx.tree_at(
        lambda s: [getattr(s.root_finder, name) for name in open_],
        solver,
        [getattr(controller, name) for name in open_],
        is_leaf=lambda node: node is unnamed,
    )


def first_solver() -> diffrax.AbstractSolver:
    """The solver that a run begins with where none is given."""
    return diffrax.Tsit5()


def stiff_solver(tolerance: float) -> diffrax.AbstractSolver:
    """The solver that takes over where the flow has become stiff."""
    return fitted(Rosenbrock(), tolerance)


def solver_named(name: str, tolerance: float) -> diffrax.AbstractSolver | None:
    """The solver of this name in the settings of a run, with its usual options.

    None for a name that is not known, or a solver of diffrax that has to be told more.
    """
    kind = SOLVERS.get(name) or _of_diffrax(name)
    try:
        return None if kind is None else fitted(kind(), tolerance)
    except TypeError:
        return None


def _of_diffrax(name: str) -> type[diffrax.AbstractSolver] | None:
    kind = getattr(diffrax, name, None)
    is_solver = isinstance(kind, type) and issubclass(kind, diffrax.AbstractSolver)
    return kind if is_solver else None
