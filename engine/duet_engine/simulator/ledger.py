"""What is written down of a run: a row for each request that ended, and every gap between tokens by its length.

Invariant: each request has exactly one row. Rows wait in blocks of numbers, so a run's memory grows by some 170 bytes a
request beside what is in flight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from duet_engine.simulator.result import NO_WORKER, RequestColumns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from duet_engine.simulator.flight import Flight

_BLOCK = 4096
GAP_BOUNDS_SECONDS = tuple(float(bound) for bound in np.geomspace(0.0005, 60.0, 592))
"""2 % wide."""
_COLUMNS = tuple(RequestColumns.__slots__)
_FLAGS = ("deflected", "succeeded")
_FLOATS = tuple(name for name in _COLUMNS if name.endswith("_seconds"))


class Ledger:
    """Rows and gaps of one run."""

    def __init__(self) -> None:
        self.ended = 0
        self._rows: list[tuple[float, ...]] = []
        self._blocks: list[NDArray[np.float64]] = []
        self._gap_values: list[float] = []
        self._gap_runs: list[int] = []
        """How many gaps came together,"""
        self._gap_weights: list[int] = []
        """and how many clients saw them."""
        self._gap_counts = np.zeros(len(GAP_BOUNDS_SECONDS) + 1)

    def close(
        self,
        flight: Flight,
        *,
        succeeded: bool,
        deflected: bool,
        prefill_worker: int = NO_WORKER,
        decode_worker: int = NO_WORKER,
        hop_seconds: float,
    ) -> None:
        """A request is over. Clients get each token a hop later."""
        self.ended += 1
        self._rows.append(
            (
                flight.index,
                flight.arrived_at,
                flight.class_index,
                flight.input_tokens,
                flight.generated_tokens,
                flight.cached_tokens,
                flight.dispatched_at,
                flight.predicted_ttft_seconds + hop_seconds,
                flight.prefill_started_at,
                flight.prefill_ended_at,
                flight.kv_arrived_at,
                flight.first_token_at + hop_seconds,
                flight.last_token_at + hop_seconds,
                flight.gaps_over_objective,
                flight.unloaded_ttft_seconds,
                deflected,
                flight.retractions,
                flight.retries,
                prefill_worker,
                decode_worker,
                succeeded,
            )
        )
        if len(self._rows) >= _BLOCK:
            self._blocks.append(np.array(self._rows, dtype=np.float64))
            self._rows = []

    def gaps(self, gaps_seconds: list[float], requests: int) -> None:
        """Each of these was seen by so many clients."""
        self._gap_values += gaps_seconds
        self._gap_runs.append(len(gaps_seconds))
        self._gap_weights.append(requests)
        if len(self._gap_values) >= 16 * _BLOCK:
            self._sort_gaps()

    def _sort_gaps(self) -> None:
        buckets = np.searchsorted(GAP_BOUNDS_SECONDS, self._gap_values)
        weights = np.repeat(self._gap_weights, self._gap_runs)
        self._gap_counts += np.bincount(buckets, weights=weights, minlength=len(self._gap_counts))
        self._gap_values, self._gap_runs, self._gap_weights = [], [], []

    @property
    def gap_counts(self) -> tuple[int, ...]:
        """By bucket; the last is of gaps beyond all bounds."""
        if self._gap_values:
            self._sort_gaps()
        return tuple(int(count) for count in self._gap_counts)

    def columns(self) -> RequestColumns:
        """All rows in order of arrival."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, len(_COLUMNS) + 1)
        table = np.concatenate([*self._blocks, rows])
        table = table[np.argsort(table[:, 0], kind="stable")]
        columns = {}
        for number, name in enumerate(_COLUMNS, start=1):
            values = table[:, number]
            kind = np.bool_ if name in _FLAGS else np.float64 if name in _FLOATS else np.int64
            columns[name] = np.ascontiguousarray(values.astype(kind))
        return RequestColumns(**columns)
