"""Conservation laws of a run, held while it runs: nothing appears, nothing gets lost.

Invariant: only reads. A law that doesn't hold is an `AssertionError` that names the worker and the numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duet_engine.simulator.decoding_worker import DecodingWorker
from duet_engine.simulator.flight import Flight, Stage
from duet_engine.simulator.kv import BLOCK_TOKENS, Holding, KvPool
from duet_engine.simulator.prefill_worker import PrefillWorker

if TYPE_CHECKING:
    from duet_engine.simulator.run import Simulation


def check(simulation: Simulation) -> None:
    """What must hold at any moment."""
    for pool in simulation.pools.values():
        for worker in pool.workers:
            _check_worker(worker)


def check_ended(simulation: Simulation) -> None:
    """What must hold when every request has ended."""
    gateway, rows = simulation.gateway, simulation.ledger.columns()
    assert gateway.open_requests == 0
    assert not gateway.waiting
    lives = [life for pool in simulation.pools.values() for life in pool.all_lives().values()]
    for pool in simulation.pools.values():
        for worker in pool.workers:
            _check_worker(worker)
            assert not worker.flights, f"{worker.name} holds {len(worker.flights)} flights after the end"
            assert worker.kv.used_tokens == worker.kv.reserved_tokens == 0, f"{worker.name} holds KV after the end"
    generated, counted = sum(life.output_tokens for life in lives), int(rows.output_tokens.sum())
    assert generated == counted, f"workers gave {generated} tokens and clients got {counted}"
    for life in lives:
        paid = life.gone_seconds - (life.ready_seconds if life.ready_seconds is not None else life.gone_seconds)
        assert life.busy_seconds <= paid + 1e-6, f"{life.name} was busy for {life.busy_seconds} of {paid} s"
    computed = sum(life.prefill_tokens for life in lives)
    if not rows.retractions.any() and not rows.retries.any() and rows.succeeded.all():
        needed = int((rows.input_tokens - rows.cached_tokens).sum())
        assert computed == needed, f"workers computed {computed} prompt tokens of {needed}"


def _check_worker(worker: PrefillWorker | DecodingWorker) -> None:
    if isinstance(worker, PrefillWorker):
        holdings = [flight.prefill_kv for flight in worker.flights]
        _check_prefill(worker)
    else:
        holdings = [flight.kv for flight in worker.flights]
        _check_decoding(worker)
    _check_kv(worker.name, worker.kv, holdings)


def _check_kv(name: str, kv: KvPool, holdings: list[Holding]) -> None:
    def generated(holding: Holding) -> int:
        return kv.steps - holding.joined_step if holding.joined_step >= 0 else 0

    own = sum(holding.tokens + generated(holding) for holding in holdings)
    shared = BLOCK_TOKENS * len({block for holding in holdings for block in holding.blocks})
    assert kv.used_tokens == own + shared, f"{name}: {kv.used_tokens} KV tokens used, {own} + {shared} held"
    promised = sum(
        holding.reserved_tokens + max(0, holding.exhausted_step - kv.steps) * (holding.exhausted_step >= 0)
        for holding in holdings
    )
    assert kv.reserved_tokens == promised, f"{name}: {kv.reserved_tokens} KV tokens reserved, {promised} promised"
    assert kv.used_tokens + kv.cached_tokens <= kv.capacity_tokens, f"{name}: more KV than there is"


def _check_prefill(worker: PrefillWorker) -> None:
    flights = [flight for flight in worker.flights if flight.stage in (Stage.BOOTSTRAP, Stage.WAITING)]
    queued = sum(flight.input_tokens - flight.computed_tokens + flight.cached_tokens for flight in flights)
    assert worker.queued_tokens == queued, f"{worker.name}: {worker.queued_tokens} tokens queued, not {queued}"
    assert worker.queued_seconds > -1e-6, f"{worker.name}: {worker.queued_seconds} s of work queued"


def _check_decoding(worker: DecodingWorker) -> None:
    batch, steps = worker.batch, worker.kv.steps
    context = sum(flight.context_tokens + steps - flight.kv.joined_step for flight in batch.flights)
    assert batch.context_tokens == context, f"{worker.name}: context of {batch.context_tokens}, not {context}"
    assert len(batch) == worker.kv.running <= worker.pool.limits.max_running_requests
    local = sum(flight.uncomputed_tokens for flight in worker.prompts)
    assert worker.local_prefill_tokens == local, f"{worker.name}: {worker.local_prefill_tokens} to prefill, not {local}"
    places: list[Flight] = [*batch.flights, *worker.prompts, *worker.retracted, *worker.transferred, *worker.prealloc]
    assert len(places) == len(set(places)), f"{worker.name}: a flight is in two places"
    assert set(places) <= set(worker.flights), f"{worker.name}: a flight isn't registered"
