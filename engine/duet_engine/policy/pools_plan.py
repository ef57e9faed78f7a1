"""What each class may occupy of two pools when there isn't enough for all: Gate-and-Route's fluid plan for Duet.

It has the constraints of `fluid_plan` (arXiv 2602.02987, section 3.2) with two differences. Prefill workers prefill and
don't decode. And a decode worker's mixed steps come in several operating points, each a batch and the largest chunk
beside it within the ITL objective:

    a = z / s + sum_m x_m C_m / (P tau_m)            prefilled: in the prefill pool, and deflected
    a = sum_m y_m / (D tau_m)                        decoded
    sum z <= n_p,  sum x_m <= X_m,  sum y_m <= B_m X_m,  sum X_m <= n_d,  a <= lambda

What is maximised differs too. The paper's revenue sheds whoever earns least for what it takes, which may be a class of
high weight with long answers. Here weights are ranks: from the highest on, the classes of a weight are served as far as
possible, all alike, beside what has been given to higher ones and a least share for lower ones.

Invariant: pure. What a plan admits, the fleet can serve at steps within the objective. A class is shed only while no
lower one can give it anything, and none gets nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from duet_engine.perf.interface import StepBatch, StepTimes
from duet_engine.policy import linear_programme
from duet_engine.policy.chunks import SafeSizes, allowed_sizes
from duet_engine.policy.linear_programme import Matrix, Vector

LEAST_SHARE = 0.1
"""Of what a class would get if all were served alike, which it keeps whatever its weight: nobody starves."""
MOST_CAPACITY = 8.0
"""Times the demand: beyond it nobody needs to know how much more."""
MIXED_BATCH_SHARES = (0.75, 0.5, 0.25, 0.0)
"""Of the largest batch: the operating points of decode workers that prefill."""
CHUNKS_TOKENS = (2048, 1024, 512, 256, 128)
RESERVED_TOKENS = 512
"""KV that an engine keeps free for each resident request's coming tokens."""
LEAST_TOKENS = 1.0
ROUNDING = 1e-6
"""The solver's: what was given to others is asked for again with so much less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoad:
    """What arrives of one class. Lengths are means; of prompts the uncached part."""

    name: str
    arrivals_per_second: float
    prompt_tokens: float
    output_tokens: float
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWorkers:
    """The workers of one pool: how many, and what one of them can do."""

    count: int
    steps: StepTimes
    chunk_tokens: int
    kv_capacity_tokens: int = 0
    """Of decode workers, as is the next."""
    most_requests: int = 1
    prefills: bool = False
    """Whether decode workers of it take whole prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """What the plan gives one class, over the whole fleet."""

    name: str
    admitted_per_second: float
    prefilling: float
    """Prompts in prefill at any time, in either pool."""
    deflected: float
    """Of those, on decode workers."""
    mixed: float
    """Requests that decode beside a prefill,"""
    solo: float
    """and without one."""
    shed_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolsPlan:
    """Shares by class, in the order of the loads, and how often the demand the fleet could serve."""

    capacity_ratio: float
    shares: tuple[ClassShare, ...] = ()
    """Empty where nobody needs to be shed."""


@dataclass(frozen=True, slots=True)
class _Mode:
    """An operating point of a decode worker."""

    batch: float
    chunk_tokens: float
    step_seconds: float


def pools_plan(
    loads: Sequence[ClassLoad],
    prefill: PoolWorkers | None,
    decode: PoolWorkers | None,
    *,
    step_budget_seconds: float,
    enough: float = 1.0,
    share: float = 1.0,
) -> PoolsPlan:
    """The plan for these arrivals. Where the fleet could serve `enough` times all of them it has no shares.

    `share`: the part of these workers that is there for these arrivals, where others use them, too.

    Raises:
        ArithmeticError: the solver gave up, which numbers far apart may make it do.
    """
    loads = [load for load in loads if load.arrivals_per_second > 0]
    if not loads:
        return PoolsPlan(capacity_ratio=MOST_CAPACITY)
    if decode is None or decode.count <= 0:
        return PoolsPlan(capacity_ratio=0.0)
    modes = _modes(loads, decode, step_budget_seconds)
    return _Programme(loads, prefill, modes, decode_workers=decode.count, share=share).plan(enough)


def _modes(loads: Sequence[ClassLoad], decode: PoolWorkers, budget_seconds: float) -> list[_Mode]:
    """Decoding alone in the largest batch within memory and objective, and smaller ones beside the largest chunk."""
    finished = sum(load.arrivals_per_second * load.output_tokens for load in loads)
    context = LEAST_TOKENS + sum(
        load.arrivals_per_second * load.output_tokens * (load.prompt_tokens + load.output_tokens / 2) for load in loads
    ) / max(finished, LEAST_TOKENS)

    def batch_of(requests: float) -> StepBatch:
        return StepBatch.decode(requests, requests * context)

    most = max(min(int(decode.kv_capacity_tokens / (context + RESERVED_TOKENS)), decode.most_requests), 1)
    full = 1
    while full < most and decode.steps.step_seconds(batch_of(min(2 * full, most))) <= budget_seconds:
        full = min(2 * full, most)
    while full < most and decode.steps.step_seconds(batch_of(full * 1.1)) <= budget_seconds:
        full = min(int(full * 1.1) + 1, most)
    modes = [_Mode(full, 0.0, decode.steps.step_seconds(batch_of(full)))]
    if decode.prefills:
        sizes = SafeSizes(allowed_sizes(CHUNKS_TOKENS, most_tokens=decode.chunk_tokens), budget_seconds)
        for share in MIXED_BATCH_SHARES:
            safe = sizes.largest(batch_of(share * full).with_chunks, decode.steps.step_seconds)
            if safe is not None:
                modes.append(_Mode(share * full, safe.size_tokens, safe.seconds))
    return modes


class _Programme:
    """Columns: z, then x and y by mode, each by class; then X by mode, a by class, and f."""

    def __init__(
        self,
        loads: Sequence[ClassLoad],
        prefill: PoolWorkers | None,
        modes: Sequence[_Mode],
        *,
        decode_workers: int,
        share: float,
    ) -> None:
        self._loads, self._modes = loads, modes
        self._count, self._mode_count = len(loads), len(modes)
        count, mode_count = self._count, self._mode_count
        self._prefill_workers = share * (prefill.count if prefill is not None else 0)
        self._decode_workers = share * decode_workers
        self._prompt_seconds = [
            prefill.steps.prompt_seconds(max(int(load.prompt_tokens), 1), chunk_tokens=prefill.chunk_tokens)
            if prefill is not None
            else 1.0
            for load in loads
        ]
        self._x = count
        self._y = self._x + count * mode_count
        self._pace = self._y + count * mode_count
        self._admitted = self._pace + mode_count
        self._share = self._admitted + count
        self._columns = self._share + 1
        self._rates = np.array([load.arrivals_per_second for load in loads])

    def plan(self, enough: float) -> PoolsPlan:
        everybody = list(range(self._count))
        ratio = float(self._most_alike(everybody, np.zeros(self._count), most=MOST_CAPACITY)[self._share])
        if ratio >= enough:
            return PoolsPlan(capacity_ratio=ratio)
        given = LEAST_SHARE * min(ratio, 1.0) * self._rates
        point = np.zeros(self._columns)
        for weight in sorted({load.weight for load in self._loads}, reverse=True):
            equals = [index for index in everybody if self._loads[index].weight == weight]
            point = self._most_alike(equals, given * (1.0 - ROUNDING))
            given[equals] = point[self._admitted : self._share][equals]
        return PoolsPlan(capacity_ratio=ratio, shares=tuple(self._shares(point)))

    def _shares(self, point: Vector) -> list[ClassShare]:
        shares = []
        for index, load in enumerate(self._loads):
            deflected = sum(float(point[self._x_of(mode, index)]) for mode in range(self._mode_count))
            decoding = [float(point[self._y_of(mode, index)]) for mode in range(self._mode_count)]
            admitted = float(point[self._admitted + index])
            shares.append(
                ClassShare(
                    name=load.name,
                    admitted_per_second=admitted,
                    prefilling=float(point[index]) + deflected,
                    deflected=deflected,
                    mixed=sum(decoding[1:]),
                    solo=decoding[0],
                    shed_per_second=max(load.arrivals_per_second - admitted, 0.0),
                )
            )
        return shares

    # --- the matrices ---

    def _x_of(self, mode: int, index: int) -> int:
        return self._x + mode * self._count + index

    def _y_of(self, mode: int, index: int) -> int:
        return self._y + mode * self._count + index

    def _capacity(self) -> tuple[Matrix, Vector]:
        """What workers there are, and what they do at each operating point."""
        rows, bounds = [], []
        prefill = np.zeros(self._columns)
        prefill[: self._count] = 1.0
        workers = np.zeros(self._columns)
        workers[self._pace : self._pace + self._mode_count] = 1.0
        rows += [prefill, workers]
        bounds += [self._prefill_workers, self._decode_workers]
        for mode, point in enumerate(self._modes):
            chunks, slots = np.zeros(self._columns), np.zeros(self._columns)
            for index in range(self._count):
                chunks[self._x_of(mode, index)] = slots[self._y_of(mode, index)] = 1.0
            chunks[self._pace + mode] = -1.0 if point.chunk_tokens else 0.0
            slots[self._pace + mode] = -point.batch
            rows += [chunks, slots]
            bounds += [0.0, 0.0]
        return np.array(rows), np.array(bounds)

    def _flow(self) -> Matrix:
        """a - prefilled = 0 by class, then a - decoded = 0 by class."""
        flow = np.zeros((2 * self._count, self._columns))
        for index, load in enumerate(self._loads):
            prompt, output = max(load.prompt_tokens, LEAST_TOKENS), max(load.output_tokens, LEAST_TOKENS)
            flow[index, self._admitted + index] = flow[self._count + index, self._admitted + index] = 1.0
            flow[index, index] = -1.0 / self._prompt_seconds[index]
            for mode, point in enumerate(self._modes):
                flow[index, self._x_of(mode, index)] = -point.chunk_tokens / (prompt * point.step_seconds)
                flow[self._count + index, self._y_of(mode, index)] = -1.0 / (output * point.step_seconds)
        return flow

    def _most_alike(self, equals: Sequence[int], least: Vector, *, most: float = 1.0) -> Vector:
        """The point with the largest f where these classes have a = f lambda and each other one at least so much."""
        alike = np.zeros((len(equals), self._columns))
        for row, index in enumerate(equals):
            alike[row, self._admitted + index], alike[row, self._share] = 1.0, -self._rates[index]
        bounds: list[tuple[float, float | None]] = [(0.0, None)] * self._admitted
        for index, rate in enumerate(self._rates.tolist()):
            bounds.append((0.0, None) if index in equals else (float(least[index]), rate))
        objective = np.zeros(self._columns)
        objective[self._share] = -1.0
        return self._solve(objective, np.vstack([self._flow(), alike]), [*bounds, (0.0, most)])

    def _solve(self, objective: Vector, flow: Matrix, bounds: Sequence[tuple[float, float | None]]) -> Vector:
        rows, limits = self._capacity()
        solution = linear_programme.solve(
            objective, at_most=(rows, limits), equal=(flow, np.zeros(len(flow))), bounds=bounds
        )
        if solution.status != 0 or solution.x is None:
            raise ArithmeticError(f"a plan that is always feasible wasn't found: {solution.message}")
        found: list[float] = solution.x.tolist()
        return np.array([max(value, 0.0) for value in found])
