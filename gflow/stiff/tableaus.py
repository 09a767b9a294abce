"""Coefficients of Rosenbrock methods, in the form that needs no product with the Jacobian.

A step of size h from y0, with J = df/dy(t0, y0) and f_t = df/dt(t0, y0), solves for i = 1, .., s

    (1/(h gamma) - J) U_i = f(t0 + c_i h, y0 + sum_j a_ij U_j) + sum_j (C_ij / h) U_j + h d_i f_t

and ends at `y0 + sum_i m_i U_i` with the error estimate `sum_i e_i U_i`. With published
coefficients alpha, Gamma, b, b^: `a = alpha Gamma^-1`, `C = diag(1/gamma) - Gamma^-1`,
`m = b Gamma^-1`, `e = (b - b^) Gamma^-1`, and d the row sums of Gamma.

Source of the form: Hairer & Wanner 1996, "Solving Ordinary Differential Equations II", IV.7.
"""

from typing import Any

import equinox as eqx
import numpy as np

# Published coefficients have 13 digits or more.
_DIGITS = 1e-11


class Tableau(eqx.Module):
    """The coefficients of one method, which check each other: a wrong digit is found at once.

    Attributes:
        name: as in the literature.
        order: order of convergence.
        gamma, a, C, m, e, c, d: as in the formulas above; a and C are strictly lower triangular.
        dense: (r, s) rows H of the method's own dense output, or None. With `k_l = sum_i H_li U_i`:
            `y(theta) = (1 - theta) y0 + theta (y1 + (1 - theta) (k_1 + theta (k_2 + ...)))`.

    Raises:
        ValueError: the coefficients are not those of an L-stable method with an error estimate.
    """

    name: str = eqx.field(static=True)
    order: int = eqx.field(static=True)
    gamma: float = eqx.field(static=True)
    a: np.ndarray
    C: np.ndarray
    m: np.ndarray
    e: np.ndarray
    c: np.ndarray
    d: np.ndarray
    dense: np.ndarray | None = None

    def __check_init__(self):
        for name, miss in self._misses().items():
            if not np.max(np.abs(miss)) < _DIGITS:
                raise ValueError(f"{self.name}: its coefficients do not fulfil {name}.")

    def _misses(self) -> dict[str, Any]:
        """What must be 0: how far the coefficients are from what follows from each other."""
        one = np.ones(len(self.m))
        gamma = np.linalg.inv(np.diag(one / self.gamma) - self.C)
        alpha, b, embedded = self.a @ gamma, self.m @ gamma, (self.m - self.e) @ gamma
        beta, order = alpha + gamma, f"the conditions of order {self.order}"
        return {
            "the triangular shape of a and C": np.triu(self.a) + np.triu(self.C),
            "c = row sums of alpha": alpha @ one - self.c,
            "d = row sums of Gamma": gamma @ one - self.d,
            "R(-infinity) = 0": 1.0 - b @ np.linalg.solve(beta, one),
            order: _off_order(self.order, b, alpha, beta),
            f"{order}, less 1, of the embedded method": _off_order(
                self.order - 1, embedded, alpha, beta
            ),
        }


def _off_order(order: int, b: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """How far weights are from the conditions of this order; of order 5 from two of them only.

    Source: Hairer & Wanner 1996, "Solving Ordinary Differential Equations II", IV.7.
    """
    one = np.ones(len(b))
    c, d = alpha @ one, beta @ one
    conditions = [
        [b @ one - 1],
        [b @ d - 1 / 2],
        [b @ c**2 - 1 / 3, b @ beta @ d - 1 / 6],
        [
            b @ c**3 - 1 / 4,
            b @ (c * (alpha @ d)) - 1 / 8,
            b @ beta @ c**2 - 1 / 12,
            b @ beta @ beta @ d - 1 / 24,
        ],
        [b @ c**4 - 1 / 5, b @ beta @ beta @ beta @ d - 1 / 120],
    ]
    return np.concatenate(conditions[:order])


def _lower(rows: list[list[float]]) -> np.ndarray:
    """A strictly lower triangular matrix from its rows, the empty first one included."""
    matrix = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    return matrix


def _published(
    name: str, order: int, alpha: Any, gamma: Any, weights: list[float], embedded: list[float]
) -> Tableau:
    """A tableau from the coefficients alpha, Gamma, b and b^."""
    alpha, gamma = np.asarray(alpha), np.asarray(gamma)
    inverse = np.linalg.inv(gamma)
    b, difference = np.asarray(weights), np.asarray(weights) - np.asarray(embedded)
    return Tableau(
        name,
        order,
        float(gamma[0, 0]),
        a=np.tril(alpha @ inverse, -1),
        C=np.tril(-inverse, -1),
        m=b @ inverse,
        e=difference @ inverse,
        c=alpha.sum(axis=1),
        d=gamma.sum(axis=1),
    )


RODAS3 = Tableau(
    "Rodas3",
    3,
    0.5,
    a=_lower([[], [0.0], [2.0, 0.0], [2.0, 0.0, 1.0]]),
    C=_lower([[], [4.0], [1.0, -1.0], [1.0, -1.0, -8 / 3]]),
    m=np.array([2.0, 0.0, 1.0, 1.0]),
    e=np.array([0.0, 0.0, 0.0, 1.0]),
    c=np.array([0.0, 0.0, 1.0, 1.0]),
    d=np.array([0.5, 1.5, 0.0, 0.0]),
)
"""Rodas3: 4 stages, order 3(2), L-stable, stiffly accurate.

Source: Sandu et al. 1997, "Benchmarking stiff ODE solvers for atmospheric chemistry problems
II: Rosenbrock solvers", Atmospheric Environment 31.
"""


_G = 4.3586652150845900e-01
_ALPHA = [
    [0.0, 0.0, 0.0, 0.0],
    [8.7173304301691801e-01, 0.0, 0.0, 0.0],
    [8.4457060015369423e-01, -1.1299064236484185e-01, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0],
]
_GAMMA = [
    [_G, 0.0, 0.0, 0.0],
    [-8.7173304301691801e-01, _G, 0.0, 0.0],
    [-9.0338057013044082e-01, 5.4180672388095326e-02, _G, 0.0],
    [2.4212380706095346e-01, -1.2232505839045147, 5.4526025533510214e-01, _G],
]
_WEIGHTS = [2.4212380706095346e-01, -1.2232505839045147, 1.5452602553351020, _G]
_EMBEDDED = [3.7810903145819369e-01, -9.6042292212423178e-02, 0.5, 2.1793326075422950e-01]
ROS34PW2 = _published("ROS34PW2", 3, _ALPHA, _GAMMA, _WEIGHTS, _EMBEDDED)
"""ROS34PW2: 4 stages, order 3(2), L-stable, a W-method: J may be an approximation.

Source: Rang & Angermann 2005, "New Rosenbrock W-methods of order 3 for partial differential
algebraic equations of index 1", BIT 45.
"""


_LAST_4P = [-7.170454962423024, -4.741636671481785, -16.31002631330971, -1.062004044111401]
RODAS4P = Tableau(
    "Rodas4P",
    4,
    0.25,
    a=_lower(
        [
            [],
            [3.0],
            [1.831036793486759, 0.4955183967433795],
            [2.304376582692669, -0.05249275245743001, -1.176798761832782],
            _LAST_4P,
            [*_LAST_4P, 1.0],
        ]
    ),
    C=_lower(
        [
            [],
            [-12.0],
            [-8.791795173947035, -2.207865586973518],
            [10.81793056857153, 6.780270611428266, 19.53485944642410],
            [34.19095006749676, 15.49671153725963, 54.74760875964130, 14.16005392148534],
            [
                34.62605830930532,
                15.30084976114473,
                56.99955578662667,
                18.40807009793095,
                -5.714285714285717,
            ],
        ]
    ),
    m=np.array([*_LAST_4P, 1.0, 1.0]),
    e=np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
    c=np.array([0.0, 0.75, 0.21, 0.63, 1.0, 1.0]),
    d=np.array([0.25, -0.5, -0.023504, -0.0362, 0.0, 0.0]),
    dense=np.reshape(
        [
            *(25.09876703708589, 11.62013104361867, 28.49148307714626, -5.664021568594133),
            *(0.0, 0.0),
            *(1.638054557396973, -0.7373619806678748, 8.477918219238990, 15.99253148779520),
            *(-1.882352941176471, 0.0),
        ],
        (2, 6),
    ),
)
"""Rodas4P: 6 stages, order 4(3), L-stable, stiffly accurate, no order reduction to below 4 on
the Prothero-Robinson problem and on linear parabolic ones.

Source: Steinebach 1995, "Order reduction of ROW methods for DAEs and method of lines
applications", Darmstadt preprint 1741; dense output after Hairer & Wanner 1996.
"""


_LAST_5P = [-7.502846399306121, 2.561846144803919, -11.627539656261098]
_LAST_5P = [*_LAST_5P, -0.18268767659942256, 0.030198172008377946]
RODAS5P = Tableau(
    "Rodas5P",
    5,
    0.21193756319429014,
    a=_lower(
        [
            [],
            [3.0],
            [2.849394379747939, 0.45842242204463923],
            [-6.954028509809101, 2.489845061869568, -10.358996098473584],
            [2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641],
            _LAST_5P,
            [*_LAST_5P, 1.0],
            [*_LAST_5P, 1.0, 1.0],
        ]
    ),
    C=_lower(
        [
            [],
            [-14.155112264123755],
            [-17.97296035885952, -2.859693295451294],
            [147.12150275711716, -1.41221402718213, 71.68940251302358],
            [165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306],
            [
                *(24.854864614690072, -3.0009227002832186, 47.4931110020768),
                *(5.5814197821558125, -0.6610691825249471),
            ],
            [
                *(30.91273214028599, -3.1208243349937974, 77.79954646070892),
                *(34.28646028294783, -19.097331116725623, -28.087943162872662),
            ],
            [
                *(37.80277123390563, -3.2571969029072276, 112.26918849496327),
                *(66.9347231244047, -40.06618937091002, -54.66780262877968, -9.48861652309627),
            ],
        ]
    ),
    m=np.array([*_LAST_5P, 1.0, 1.0, 1.0]),
    e=np.array([0.0] * 7 + [1.0]),
    c=np.array(
        [
            *(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716),
            *(0.4288403609558664, 1.0, 1.0, 1.0),
        ]
    ),
    d=np.array(
        [
            *(0.21193756319429014, -0.42387512638858027, -0.3384627126235924),
            *(1.8046452872882734, 2.325825639765069, 0.0, 0.0, 0.0),
        ]
    ),
    dense=np.reshape(
        [
            *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
            *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
            *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
            *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
            *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
            *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
        ],
        (3, 8),
    ),
)
"""Rodas5P: 8 stages, order 5(4), L-stable, stiffly accurate, order 5 on Prothero-Robinson.

Source: Steinebach 2023, "Construction of Rosenbrock-Wanner method Rodas5P and numerical
benchmarks within the Julia Differential Equations package", BIT 63.
"""

TABLEAUS = {tableau.name: tableau for tableau in (RODAS3, ROS34PW2, RODAS4P, RODAS5P)}
"""The methods by name."""
