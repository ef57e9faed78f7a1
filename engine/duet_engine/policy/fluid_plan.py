"""How many workers prefill and what each class may occupy: Gate-and-Route's fluid plan (arXiv 2602.02987).

The linear programme of section 3.2 over averages of one worker. `x` is prefills in service, `y_m` and `y_s` are
decodes beside a prefill and without one, `q_p` and `q_d` the queues of those who lose patience at rate theta:

    max  sum (c_p P + c_d D) (mu_m y_m + mu_s y_s)                                  charged at completion (bundled)
    max  c_p (C / tau) sum x + (c_d / tau) sum y_m + c_d gamma sum y_s              charged by phase (separate)
    s.t. sum x <= 1,   sum y_m <= (B - 1) sum x,   sum y_s <= B (1 - sum x)
         lambda = mu_p x + theta q_p,   mu_p x = mu_m y_m + mu_s y_s + theta q_d,   all >= 0

with mu_p = C / (P tau), mu_m = 1 / (D tau), mu_s = gamma / D. Service limits (section 5) bound or charge the spread of
`x` and of `y_s` between classes and the mean TPOT (tau (B-1) X + B (1-X) / gamma) / ((B-1) X + B (1-X)), X = sum x.

Invariant: what `fluid_plan` returns is feasible and optimal; where nothing is feasible it raises and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from duet_engine.policy import linear_programme
from duet_engine.policy.fluid_model import Charging, Limit, Prices, ServiceLimits, TrafficClass, WorkerPace
from duet_engine.policy.linear_programme import Vector

MOST_TANGENTS = 40
"""Of the mean TPOT's curve where it is charged for; a handful is usual."""


class InfeasiblePlan(ValueError):
    """No point meets every constraint: too little patience to shed the overload, or service limits too tight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPrices:
    """What one more unit of each right-hand side would earn; 0 where the constraint isn't held or doesn't bind."""

    prefill_slot: float
    """Sum x <= 1."""
    mixed_slot: float
    solo_slot: float
    arrivals: tuple[float, ...]
    """Of each class: one more arrival a second. Negative where serving it costs more than it earns."""
    handovers: tuple[float, ...]
    """Of each class: one more finished prefill a second."""
    prefill_spread: float = 0.0
    decode_spread: float = 0.0
    mean_tpot: float = 0.0
    """Of tau (B-1) X + B (1-X) / gamma <= eta (B - X)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidPlan:
    """An optimum: averages per worker, one entry for each class."""

    classes: tuple[TrafficClass, ...]
    pace: WorkerPace
    prefilling: tuple[float, ...]
    decoding_mixed: tuple[float, ...]
    decoding_solo: tuple[float, ...]
    prefill_queue: tuple[float, ...]
    decode_queue: tuple[float, ...]
    revenue_per_second: float
    """R*, penalties not taken off."""
    shadow_prices: ShadowPrices

    @property
    def mixed_share(self) -> float:
        """X: the share of workers that prefill."""
        return sum(self.prefilling)

    @property
    def mean_tpot_seconds(self) -> float:
        return self.pace.mean_tpot_seconds(self.mixed_share)

    def mixed_workers(self, workers: int) -> int:
        """M = ceil(n X): they keep a slot for prefill; the others never prefill."""
        return min(workers, math.ceil(workers * self.mixed_share - 1e-9))

    def solo_probabilities(self) -> tuple[float, ...]:
        """p_s = mu_s y_s / (mu_m y_m + mu_s y_s): each class's share of handovers to the solo pool; 1 without any."""
        return tuple(
            _share(self.pace.solo_decodes_per_second(one) * solo, self.pace.mixed_decodes_per_second(one) * mixed)
            for one, mixed, solo in zip(self.classes, self.decoding_mixed, self.decoding_solo, strict=True)
        )


def fluid_plan(
    classes: Sequence[TrafficClass],
    pace: WorkerPace,
    prices: Prices | None = None,
    limits: ServiceLimits | None = None,
    *,
    decode_queue: bool | None = None,
) -> FluidPlan:
    """The optimum for this traffic.

    `decode_queue` says whether prompts may be prefilled whose decode never starts. By default not where that is known
    to cost nothing (Proposition 3.2, charged at completion) and not under service limits, as in section 5.

    Raises:
        InfeasiblePlan: no point meets every constraint.
        ValueError: an input that makes no sense, by name.
    """
    if not classes:
        raise ValueError("classes: at least one is needed")
    prices, limits = prices or Prices(), limits or ServiceLimits()
    if decode_queue is None:
        held = any(one.active for one in (limits.prefill_spread, limits.decode_spread, limits.mean_tpot_seconds))
        free_to_empty = prices.charging is Charging.BUNDLED and pace.solo_is_more_efficient
        decode_queue = not (held or free_to_empty)
    return _Programme(tuple(classes), pace, prices, limits, decode_queue=decode_queue).optimum()


@dataclass(frozen=True, slots=True)
class _Solution:
    point: Vector
    row_prices: Vector
    """Of the rows that are held."""
    balance_prices: Vector
    held: np.ndarray[tuple[int], np.dtype[np.bool_]]


class _Programme:
    """The matrices of one linear programme. Columns: x, y_m, y_s, q_p, q_d by class, then the spreads and the TPOT."""

    def __init__(
        self,
        classes: tuple[TrafficClass, ...],
        pace: WorkerPace,
        prices: Prices,
        limits: ServiceLimits,
        *,
        decode_queue: bool,
    ) -> None:
        self.classes, self.pace, self.limits = classes, pace, limits
        count = len(classes)
        self.x, self.mixed, self.solo, self.prefill_queue, self.decode_queue = (
            slice(block * count, (block + 1) * count) for block in range(5)
        )
        self.prefill_spread, self.decode_spread, self.tpot = 5 * count, 5 * count + 2, 5 * count + 4
        self.columns = 5 * count + 5
        self.prefills = np.array([pace.prefills_per_second(one) for one in classes])
        self.mixed_decodes = np.array([pace.mixed_decodes_per_second(one) for one in classes])
        self.solo_decodes = np.array([pace.solo_decodes_per_second(one) for one in classes])
        self.impatience = np.array([one.impatience_per_second for one in classes])
        self.upper: Vector = np.full(self.columns, np.inf)
        self.upper[self.prefill_queue][self.impatience == 0.0] = 0.0
        self.upper[self.decode_queue][(self.impatience == 0.0) | (not decode_queue)] = 0.0
        self.revenue = self._revenue(prices)
        self.rows: list[Vector] = []
        self.bounds: list[float] = []
        self.named: dict[str, int] = {}
        self._add_capacity()
        self._add_spread("prefill_spread", limits.prefill_spread, self.x, self.prefill_spread)
        self._add_spread("decode_spread", limits.decode_spread, self.solo, self.decode_spread)
        self._add_mean_tpot()

    def optimum(self) -> FluidPlan:
        """Solve; where the mean TPOT is charged for, add tangents of its curve until they meet it."""
        charged = self.limits.mean_tpot_seconds.penalty > 0.0
        for _ in range(MOST_TANGENTS if charged else 1):
            solution = self._solve()
            share = min(1.0, float(solution.point[self.x].sum()))
            reached = self.pace.mean_tpot_seconds(share)
            if not charged or float(solution.point[self.tpot]) >= reached * (1.0 - 1e-9):
                break
            self._add_tangent(share)
        return self._plan(solution)

    def _revenue(self, prices: Prices) -> Vector:
        revenue: Vector = np.zeros(self.columns)
        if prices.charging is Charging.BUNDLED:
            earned = np.array([prices.request(one) for one in self.classes])
            revenue[self.mixed], revenue[self.solo] = earned * self.mixed_decodes, earned * self.solo_decodes
            return revenue
        revenue[self.x] = prices.prompt_token * self.pace.chunk_tokens / self.pace.mixed_step_seconds
        revenue[self.mixed] = prices.output_token / self.pace.mixed_step_seconds
        revenue[self.solo] = prices.output_token / self.pace.solo_step_seconds
        return revenue

    def _add(self, row: Vector, bound: float, name: str = "") -> None:
        if name:
            self.named[name] = len(self.rows)
        self.rows.append(row)
        self.bounds.append(bound)

    def _row(self) -> Vector:
        return np.zeros(self.columns)

    def _add_capacity(self) -> None:
        slots = self.pace.batch_slots
        prefill, mixed, solo = self._row(), self._row(), self._row()
        prefill[self.x] = 1.0
        mixed[self.mixed], mixed[self.x] = 1.0, -(slots - 1)
        solo[self.solo], solo[self.x] = 1.0, slots
        self._add(prefill, 1.0, "prefill_slot")
        self._add(mixed, 0.0, "mixed_slot")
        self._add(solo, float(slots), "solo_slot")

    def _add_spread(self, name: str, limit: Limit, block: slice, column: int) -> None:
        """Every entry of the block lies between two more columns, whose distance is bounded or charged for."""
        self.upper[column : column + 2] = np.inf if limit.active else 0.0
        if not limit.active:
            return
        for index in range(block.start, block.stop):
            below, above = self._row(), self._row()
            below[index], below[column] = 1.0, -1.0
            above[index], above[column + 1] = -1.0, 1.0
            self._add(below, 0.0)
            self._add(above, 0.0)
        spread = self._row()
        spread[column], spread[column + 1] = 1.0, -1.0
        self._add(spread, limit.most, name)

    def _add_mean_tpot(self) -> None:
        """As a bound it is linear: the slots' number, B - X, is positive."""
        limit, pace = self.limits.mean_tpot_seconds, self.pace
        self.upper[self.tpot] = np.inf if limit.penalty > 0.0 else 0.0
        if limit.penalty > 0.0 and pace.mixed_step_seconds < pace.solo_step_seconds:
            raise ValueError("mean_tpot_seconds: a penalty needs mixed steps that are no shorter than solo ones")
        if limit.most < math.inf:
            row = self._row()
            row[self.x] = (pace.batch_slots - 1) * pace.mixed_step_seconds + limit.most
            row[self.x] -= pace.batch_slots * pace.solo_step_seconds
            self._add(row, pace.batch_slots * (limit.most - pace.solo_step_seconds), "mean_tpot")

    def _add_tangent(self, share: float) -> None:
        slope = self.pace.mean_tpot_slope(share)
        row = self._row()
        row[self.x], row[self.tpot] = slope, -1.0
        self._add(row, slope * share - self.pace.mean_tpot_seconds(share))

    def _solve(self) -> _Solution:
        count = len(self.classes)
        balance = np.zeros((2 * count, self.columns))
        arrivals, handovers = balance[:count], balance[count:]
        arrivals[:, self.x] = np.diag(self.prefills)
        arrivals[:, self.prefill_queue] = np.diag(self.impatience)
        handovers[:, self.x] = -np.diag(self.prefills)
        handovers[:, self.mixed], handovers[:, self.solo] = np.diag(self.mixed_decodes), np.diag(self.solo_decodes)
        handovers[:, self.decode_queue] = np.diag(self.impatience)
        rates = np.concatenate([[one.arrivals_per_second for one in self.classes], np.zeros(count)])
        held = np.isfinite(self.bounds)
        solution = linear_programme.solve(
            -self._objective(),
            at_most=(np.array(self.rows)[held], np.array(self.bounds)[held]),
            equal=(balance, rates),
            bounds=[(0.0, most) for most in self.upper.tolist()],
        )
        if solution.status != 0 or solution.x is None:
            raise InfeasiblePlan(
                f"no plan meets every constraint ({solution.message.split('(')[0].strip()}): allow classes to lose "
                "patience (impatience_per_second), plan with more workers, or loosen the service limits"
            )
        return _Solution(solution.x, -solution.ineqlin.marginals, -solution.eqlin.marginals, held)

    def _objective(self) -> Vector:
        objective = self.revenue.copy()
        for column, limit in (
            (self.prefill_spread, self.limits.prefill_spread),
            (self.decode_spread, self.limits.decode_spread),
        ):
            objective[column], objective[column + 1] = -limit.penalty, limit.penalty
        objective[self.tpot] = -self.limits.mean_tpot_seconds.penalty
        return objective

    def _plan(self, solution: _Solution) -> FluidPlan:
        point: Vector = np.maximum(solution.point, 0.0)
        return FluidPlan(
            classes=self.classes,
            pace=self.pace,
            prefilling=_floats(point[self.x]),
            decoding_mixed=_floats(point[self.mixed]),
            decoding_solo=_floats(point[self.solo]),
            prefill_queue=_floats(point[self.prefill_queue]),
            decode_queue=_floats(point[self.decode_queue]),
            revenue_per_second=float(self.revenue @ point),
            shadow_prices=self._shadow_prices(solution),
        )

    def _shadow_prices(self, solution: _Solution) -> ShadowPrices:
        count = len(self.classes)
        of_row = dict(zip(np.flatnonzero(solution.held).tolist(), solution.row_prices.tolist(), strict=True))
        priced = {name: max(0.0, of_row.get(row, 0.0)) for name, row in self.named.items()}
        balances = _floats(solution.balance_prices)
        return ShadowPrices(arrivals=balances[:count], handovers=balances[count:], **priced)


def _floats(values: Vector) -> tuple[float, ...]:
    return tuple(values.tolist())


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0.0 else 1.0
