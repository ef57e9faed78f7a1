"""What the plugin tells of a scheduler, from one that has SGLang's queues and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from duet_engine.plugin import scheduler_side
from duet_engine.plugin.board import Numbers, cards
from duet_engine.plugin.facts import FACT_NAMES, SchedulerFacts, facts_from
from duet_engine.plugin.hooks import HookTable
from duet_engine.plugin.profile import replica_model
from duet_engine.plugin.scheduler_side import SchedulerSide
from duet_engine.plugin.settings import EngineSettings
from duet_engine.protocol import Knobs, StepKind

MODEL = replica_model(
    EngineSettings.read({"DUET_MODEL_ID": "meta-llama/Llama-3.1-8B", "DUET_GPU": "h100"}), model_path="", ranks=1
)


def request(tokens: int, cached: int = 0) -> SimpleNamespace:
    return SimpleNamespace(origin_input_ids=[0] * tokens, num_matched_prefix_tokens=cached)


class Mode:
    """SGLang's forward mode."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        return lambda: self.kind in ("extend", "mixed") if name == "is_extend" else name == f"is_{self.kind}"


def batch(kind: str, number: int, **fields: Any) -> SimpleNamespace:
    defaults: dict[str, Any] = {"reqs": [], "seq_lens_cpu": None, "extend_lens": None, "prefix_lens": None}
    defaults |= {"chunked_req": None, "decoding_reqs": None}
    return SimpleNamespace(forward_mode=Mode(kind), forward_iter=number, **defaults | fields)


def scheduler(mode: str) -> SimpleNamespace:
    queue = SimpleNamespace(queue=[], retracted_queue=[], num_reserved_decode_tokens=512)
    return SimpleNamespace(
        running_batch=batch("decode", 0), max_total_num_tokens=100_000, max_running_requests=64,
        chunked_prefill_size=2048, device="cuda", waiting_queue=[], chunked_req=None,
        grammar_manager=SimpleNamespace(grammar_queue=[]), disaggregation_mode=SimpleNamespace(value=mode),
        disagg_prefill_bootstrap_queue=SimpleNamespace(queue=[]), disagg_prefill_inflight_queue=[],
        disagg_decode_prealloc_queue=queue, disagg_decode_transfer_queue=SimpleNamespace(queue=[]),
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: 60_000),
        tree_cache=SimpleNamespace(evictable_size=lambda: 10_000), _engine_paused=False,
    )  # fmt: skip


class Observed:
    """A scheduler with the plugin, and what another process reads of it."""

    def __init__(self, mode: str, board: Path) -> None:
        self.sglang = scheduler(mode)
        path = board / "scheduler-0.numbers"
        numbers = Numbers(path, FACT_NAMES, create=True)
        self.side = SchedulerSide(self.sglang, numbers, knobs=Knobs(generation=0, itl_milliseconds=50), model=MODEL)
        self._reader = Numbers(path, FACT_NAMES, create=False)

    def read(self) -> SchedulerFacts:
        self.side.refresh(1.0)
        return facts_from(self._reader.read())

    def run(self, work: SimpleNamespace) -> None:
        self.side.step_begins(work)
        self.side.timer.launched(work)
        self.side.step_ended(work)


def test_a_prefill_workers_tokens_are_all_that_it_must_still_compute(tmp_path: Path) -> None:
    """Whose decode worker hasn't answered yet, those that wait, the rest of the prompt under way, and its chunk."""
    worker = Observed("prefill", tmp_path)
    worker.sglang.disagg_prefill_bootstrap_queue.queue = [request(1000)]
    worker.sglang.waiting_queue = [request(500, cached=100), request(300)]
    assert worker.read().queued_prefill_tokens == 1700
    long_prompt = SimpleNamespace(seqlen=5000, extend_end=2048)
    worker.sglang.chunked_req = long_prompt
    step = batch("extend", 1, reqs=[long_prompt], extend_lens=[2048], prefix_lens=[0], chunked_req=long_prompt)
    worker.side.step_begins(step)
    assert worker.read().queued_prefill_tokens == 1700 + 5000
    worker.side.timer.launched(step)
    worker.side.step_ended(step)
    assert worker.read().queued_prefill_tokens == 1700 + 5000 - 2048
    assert worker.read().prefill_tokens_total == 2048
    assert worker.read().output_tokens_total == 0, "its prompt goes on"


def test_a_decode_workers_promises_are_told_and_never_more_than_there_is(tmp_path: Path) -> None:
    worker = Observed("decode", tmp_path)
    worker.sglang.disagg_decode_transfer_queue.queue = [object()] * 3
    worker.sglang.running_batch.reqs = [object()] * 5
    facts = worker.read()
    assert (facts.kv_used_tokens, facts.kv_reserved_tokens) == (30_000, 8 * 512)
    assert (facts.running, facts.decode_transfer, facts.queued_prefill_tokens) == (5, 3, 0)
    worker.sglang.disagg_decode_transfer_queue.queue = [object()] * 500
    assert worker.read().kv_reserved_tokens == 70_000


def test_a_worker_that_falls_idle_says_so_at_once(tmp_path: Path) -> None:
    worker = Observed("null", tmp_path)
    reqs = [object()] * 2
    step = batch("decode", 1, reqs=reqs, seq_lens_cpu=np.array([10, 20]))
    worker.side.step_begins(step)
    facts = worker.read()
    assert (facts.kind, facts.decode_requests, facts.decode_context_tokens) == (StepKind.DECODE, 2, 30)
    assert facts.step_predicted_seconds == pytest.approx(MODEL.step_seconds(_decode(2, 30)))
    worker.side.timer.launched(step)
    worker.side.idles()
    assert facts_from(worker._reader.read()).kind is StepKind.DECODE, "its results aren't there yet"
    worker.side.step_ended(step)
    worker.side.idles()
    facts = facts_from(worker._reader.read())
    assert (facts.kind, facts.decode_requests, facts.step_started_at) == (StepKind.IDLE, 0, 0)
    assert facts.decode_steps_total == 1


def _decode(requests: int, tokens: int) -> Any:
    from duet_engine.perf.interface import StepBatch

    return StepBatch.decode(requests, tokens)


def test_a_decode_step_like_the_one_before_is_counted_and_not_written_again(tmp_path: Path) -> None:
    worker, reqs = Observed("null", tmp_path), [object()] * 2
    worker.run(batch("decode", 1, reqs=reqs, seq_lens_cpu=np.array([10, 20])))
    written = worker._reader.version
    worker.run(batch("decode", 2, reqs=reqs, seq_lens_cpu=np.array([11, 21])))
    assert worker._reader.version == written
    worker.run(batch("decode", 3, reqs=reqs[:1], seq_lens_cpu=np.array([12])))
    assert worker._reader.version > written, "somebody has left"
    facts = worker.read()
    assert (facts.decode_steps_total, facts.output_tokens_total) == (3, 5)
    assert facts.predicted_seconds_total > 2 * facts.step_predicted_seconds


def test_work_that_needs_nobody_else_is_told_since_when(tmp_path: Path) -> None:
    worker = Observed("decode", tmp_path)
    worker.sglang.disagg_decode_prealloc_queue.queue = [object()]
    assert worker.read().runnable_since == 0, "it waits for a prefill worker"
    worker.sglang.waiting_queue = [request(5)]
    assert worker.read().runnable_since == 1.0


def test_a_prompt_that_lacks_room_because_nobody_fetches_kv_waits_for_a_peer(tmp_path: Path) -> None:
    worker = Observed("prefill", tmp_path)
    worker.sglang.waiting_queue = [request(5)]
    worker.sglang.disagg_prefill_inflight_queue = [object()]
    assert worker.read().runnable_since == 0
    worker.sglang.disagg_prefill_inflight_queue = []
    assert worker.read().runnable_since == 1.0


def test_a_mistake_while_looking_costs_readiness_and_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SGLang's scheduler would end with it, and its engine with that."""
    worker = Observed("null", tmp_path)
    monkeypatch.setattr(scheduler_side, "scheduler_rank", lambda: 0)
    settings = EngineSettings.read({"DUET_MODEL_ID": "meta-llama/Llama-3.1-8B"})
    scheduler_side.prepare(settings, tmp_path, HookTable())
    monkeypatch.setattr(scheduler_side._here[0], "side", worker.side)
    del worker.sglang.tree_cache
    worker.side.idles()  # nothing to tell: it is idle as it was
    for _ in range(2):
        scheduler_side.observe(worker.sglang, lambda side: side.refresh(1.0))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (card,) = cards(tmp_path)
    assert not card.hooks[0].active
    assert "tree_cache" in str(card.hooks[0].reason)


def test_modules_set_their_facts_before_they_are_written_and_hear_of_settings(tmp_path: Path) -> None:
    worker, heard = Observed("decode", tmp_path), []

    def contribute(facts: SchedulerFacts) -> None:
        facts.deflected = 4.0

    worker.side.on_refresh.append(contribute)
    worker.side.on_knobs.append(heard.append)
    worker.side.apply_knobs(Knobs(generation=9, itl_milliseconds=30))
    facts = facts_from(worker._reader.read())
    assert (facts.deflected, facts.knobs_generation) == (4, 9)
    assert [knobs.itl_milliseconds for knobs in heard] == [30]
