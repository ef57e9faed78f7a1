"""Linear programmes, by SciPy's HiGHS.

Invariant: SciPy is loaded with the first programme that is solved. It takes tens of megabytes and half a second, and
most operators and gateways never solve one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def solve(
    costs: Vector,
    *,
    at_most: tuple[Matrix, Vector],
    equal: tuple[Matrix, Vector],
    bounds: Sequence[tuple[float, float | None]],
) -> OptimizeResult:
    """The cheapest point x with A x <= b for `at_most`, A x = b for `equal`, and each column within its bounds."""
    from scipy.optimize import linprog

    return linprog(costs, A_ub=at_most[0], b_ub=at_most[1], A_eq=equal[0], b_eq=equal[1], bounds=bounds, method="highs")
