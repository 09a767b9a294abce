"""Max-margin problems with known solutions, and an independent judge of solutions."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np


def lp_norm(vector, order):
    """`|vector|_order` by NumPy's own formula, of a vector whose largest entry is 1."""
    largest = np.abs(vector).max()
    return largest * np.linalg.norm(vector / (largest or 1), order)


def dual_of(order):
    return np.inf if order == 1 else 1.0 if np.isinf(order) else order / (order - 1)


def signed(dataset):
    return dataset.y[:, None] * dataset.x


def margins(dataset, direction, radius, order):
    """`y_i <u, x_i> - radius |u|_q` for each example."""
    return signed(dataset) @ direction - radius * lp_norm(direction, dual_of(order))


def rounding(dataset, margin):
    """What rounding a unit direction to float64 moves the normalised margins by, generously."""
    return 4e-16 * dataset.x.shape[1] * lp_norm(signed(dataset), 2) / margin


def kkt_violations(dataset, answer):
    """Every KKT condition of `min 1/2 |w|^2, <w, z_i> - radius |w|_q >= 1`, as a relative error."""
    z, radius, order = signed(dataset), answer.radius, answer.order
    w, multipliers, slope = answer.direction / answer.margin, answer.multipliers, answer.subgradient
    length = lp_norm(w, 2)
    slack = z @ w - radius * lp_norm(w, dual_of(order)) - 1
    gradient = multipliers @ (z - radius * slope)
    return {
        "stationarity": lp_norm(w - gradient, 2) / length,
        "feasibility": max(0.0, -slack.min()),
        "signs": max(0.0, -multipliers.min()) / length**2,
        "complementarity": np.abs(multipliers @ slack) / length**2,
        "sum of multipliers": abs(multipliers.sum() / length**2 - 1),
        "dual ball": max(0.0, lp_norm(slope, order) - 1),
        "alignment": radius * abs(slope @ w - lp_norm(w, dual_of(order))) / (1 + length),
    }


def manufactured(order, seed, *, num_active=5, num_others=20, dim=8, radius=0.3):
    """Data whose solution is chosen first: `(dataset, direction, margin, multipliers)`.

    Choose w, a subgradient s of `|.|_q` at w and multipliers of sum `|w|^2`. Put all but one active
    example anywhere on `<w, z> = 1 + radius |w|_q`; the last one follows from stationarity and lies
    there by itself. Others lie further away. For order inf some weights are zero, for order 1 some
    tie for the maximum. All in extended precision, rounded once.
    """
    generator = np.random.default_rng(seed)
    w = generator.normal(size=dim).astype(np.longdouble)
    if np.isinf(order):
        w[:3] = 0
        s = np.where(w == 0, generator.uniform(-0.9, 0.9, dim), np.sign(w))
    elif order == 1:
        w[:3] = np.sign(w[:3]) * 1.2 * np.abs(w).max()
        s = np.zeros(dim, np.longdouble)
        s[:3] = generator.dirichlet([5, 5, 5]) * np.sign(w[:3])
    else:
        q = np.longdouble(order) / (np.longdouble(order) - 1)
        s = np.sign(w) * np.abs(w) ** (q - 1)
        s = s / np.sum(np.abs(w) ** q) ** (1 - 1 / q)
    level = 1 + radius * (s @ w)
    multipliers = generator.uniform(0.5, 1.5, num_active)
    multipliers = multipliers / multipliers.sum() * (w @ w)
    z = generator.normal(size=(num_active + num_others, dim)).astype(np.longdouble)
    excess = np.concatenate([np.zeros(num_active), generator.uniform(0.2, 3, num_others)])
    z += np.outer(level + excess - z @ w, w) / (w @ w)
    rest = multipliers[:-1] @ z[: num_active - 1]
    z[num_active - 1] = (w + radius * multipliers.sum() * s - rest) / multipliers[-1]
    y = np.where(np.arange(len(z)) % 2 == 0, 1.0, -1.0)
    dataset = SimpleNamespace(x=(y[:, None] * z).astype(np.float64), y=y)
    length = np.sqrt(w @ w)
    padded = np.concatenate([multipliers, np.zeros(num_others)])
    return dataset, (w / length).astype(float), float(1 / length), padded.astype(float)


def exact_direction(dataset, answer):
    """The rational w on `answer`'s support and face, proved optimal in exact arithmetic, or None.

    Orders 1, 2 and inf are quadratic programmes: on the face (the nonzero weights for order inf,
    one shared size for the maximal weights for order 1) the equalities are linear and rational.
    """
    z = [[Fraction(v) for v in row] for row in signed(dataset)]
    radius, order = Fraction(answer.radius), answer.order
    u = answer.direction
    dim = len(u)
    if order == 2:
        radius, columns, slope = Fraction(0), [{j: 1} for j in range(dim)], [0] * dim
    elif np.isinf(order):
        named = [j for j in range(dim) if abs(u[j]) > 1e-12]
        columns, slope = [{j: 1} for j in named], [int(np.sign(u[j])) for j in named]
    else:
        top = [j for j in range(dim) if abs(u[j]) > (1 - 1e-12) * np.abs(u).max()]
        columns = [{j: 1} for j in range(dim) if j not in top]
        slope = [0] * len(columns) + [1]
        columns.append({j: int(np.sign(u[j])) for j in top})
    rows = [
        [
            sum(c * row[j] for j, c in column.items()) - radius * s
            for column, s in zip(columns, slope, strict=True)
        ]
        for row in z
    ]
    weight = [len(column) for column in columns]
    active = list(answer.support)
    gram = [
        [sum(a * b / g for a, b, g in zip(rows[i], rows[k], weight, strict=True)) for k in active]
        for i in active
    ]
    multipliers = _solve_fractions(gram)
    if multipliers is None:
        return None
    v = [
        sum(m * rows[i][c] for m, i in zip(multipliers, active, strict=True)) / g
        for c, g in enumerate(weight)
    ]
    w = [Fraction(0)] * dim
    for value, column in zip(v, columns, strict=True):
        for j, c in column.items():
            w[j] = c * value
    pull = [sum(m * z[i][j] for m, i in zip(multipliers, active, strict=True)) for j in range(dim)]
    force = radius * sum(multipliers)
    proved = min(multipliers) >= 0 and all(
        sum(a * b for a, b in zip(row, w, strict=True)) - radius * _rational_norm(w, order) >= 1
        for row in z
    )
    if np.isinf(order):
        proved &= all(abs(pull[j] - w[j]) <= force for j in range(dim))
        proved &= all(w[j] * np.sign(u[j]) > 0 for j in named)
    elif order == 1:
        proved &= all(np.sign(u[j]) * (pull[j] - w[j]) >= 0 for j in top)
    assert proved
    size = np.sqrt(np.sum(np.array([float(x) for x in w]) ** 2))
    return np.array([float(x) for x in w]) / size


def _rational_norm(w, order):
    sizes = [abs(x) for x in w]
    return sum(sizes) if np.isinf(order) else max(sizes)


def _solve_fractions(matrix):
    """`matrix x = 1` by Gaussian elimination; None if singular."""
    size = len(matrix)
    table = [[*row, Fraction(1)] for row in matrix]
    for k in range(size):
        pivot = next((i for i in range(k, size) if table[i][k] != 0), None)
        if pivot is None:
            return None
        table[k], table[pivot] = table[pivot], table[k]
        table[k] = [value / table[k][k] for value in table[k]]
        for i in range(size):
            if i != k:
                table[i] = [a - table[i][k] * b for a, b in zip(table[i], table[k], strict=True)]
    return [row[-1] for row in table]
