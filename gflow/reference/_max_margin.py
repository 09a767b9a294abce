"""The public verbs: check the arguments and choose the method."""

from typing import Any, SupportsFloat

from gflow._interrupts import interruptible
from gflow._signatures import named
from gflow.reference._arguments import checked_examples, checked_order, checked_radius
from gflow.reference._classes import largest_radius_of_classes, max_margin_of_classes
from gflow.reference._labels import largest_radius_of_labels, max_margin_of_labels
from gflow.reference._solution import MaxMargin


@named()
@interruptible
def max_margin(dataset: Any, *, radius: SupportsFloat = 0.0, order: SupportsFloat = 2) -> MaxMargin:
    """The direction of largest margin under an l_p attack, `p = order`, of the given radius.

        argmax over |w|_2 = 1 of   min_i y_i <w, x_i> - radius |w|_q,      1/p + 1/q = 1.

    It is the limit direction of linear networks, and of the product of the layers of deep linear
    ones, under adversarial training with that attack. The direction is correct to about 1e-12;
    `duality_gap` in the answer proves the margin. For order 2 it is the support-vector direction of
    the clean data at every radius; for other orders it depends on the radius.

    An infeasible radius is an outcome, not an error: `feasible` is False, the numbers are NaN and
    `message` names the largest feasible radius. A margin below 1e-12 of the data's largest entry
    counts as none. Close to the largest feasible radius `feasible` still says on which side of it
    `radius` lies: a direction with a positive margin proves the one side, a bound that no direction
    exceeds the other. Between the two, which rounding leaves some 1e-14 apart, relative,
    `feasible` is False and `message` says that the sides cannot be told apart.

    Order 2 and inf: SciPy's nonnegative least squares, as least-distance programming. Order 1 and
    any other: Clarabel. Then the active set, or Newton's method on it, gives the last digits.

    For classes 0 .. k-1 the weights are a matrix W with a row for each class, the norm is that of
    Frobenius, and the attack is made against every rival separately:

        min_i min_{j != y_i}  <W_{y_i} - W_j, x_i> - radius |W_{y_i} - W_j|_q.

    Args:
        dataset: a `gflow.Dataset`, or what has `x` (n, d) and `y` (n,) in {-1, +1} or 0 .. k-1.
        radius: of the attack, >= 0, in the units of the inputs.
        order: p >= 1 of its l_p ball.

    Raises:
        TypeError: `dataset` has no `x` and `y`; `radius` or `order` is not a number.
        ValueError: `radius` is negative, NaN or infinite; `order` is below 1 or NaN; labels other
            than -1 and +1 or the classes 0 .. k-1; NaN, infinity or masked entries in `x`.

    Source: Lyu & Zhu 2022, "Implicit bias of adversarial training for deep neural networks".
    """
    x, y, num_classes = checked_examples(dataset)
    radius, order = checked_radius(radius), checked_order(order)
    if num_classes > 1:
        return max_margin_of_classes(x, y, num_classes, radius, order)
    return max_margin_of_labels(y[:, None] * x, radius, order)


@named()
def largest_feasible_radius(dataset: Any, *, order: SupportsFloat = 2) -> float:
    """The radius from which on an l_p attack leaves no direction with a positive margin.

        max over |w|_q <= 1 of   min_i y_i <w, x_i>,      1/p + 1/q = 1, p = order,

    which is also the l_p distance from 0 to the convex hull of the `y_i x_i`. It is 0 if the data
    are not linearly separable by a hyperplane through the origin, and NaN where the solvers cannot
    tell. Relative error about 1e-9.

    Raises: as `max_margin`.
    """
    (x, y, num_classes), order = checked_examples(dataset), checked_order(order)
    if num_classes > 1:
        return largest_radius_of_classes(x, y, num_classes, order)
    return largest_radius_of_labels(y[:, None] * x, order)
