"""Workers and prompts for tests of routing policies: idle and roomy unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.step_times import QUICK

from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.fleet import DecodeWorker, Fleet, PrefillWorker, Prompt


def prefill(key: str = "p", **changes: Any) -> PrefillWorker:
    return replace(PrefillWorker(key=key, revision="r", steps=QUICK, chunk_tokens=2048), **changes)


def decode(key: str = "d", **changes: Any) -> DecodeWorker:
    worker = DecodeWorker(
        key=key,
        revision="r",
        steps=QUICK,
        chunk_tokens=2048,
        batch=DecodeBatch(0, 0),
        kv_capacity_tokens=100_000,
        kv_free_tokens=100_000,
        free_slots=100,
    )
    return replace(worker, **changes)


def prompt(tokens: int = 1000, **changes: Any) -> Prompt:
    return replace(Prompt(tokens=tokens, waited_seconds=0.0, ttft_objective_seconds=1.0), **changes)


def fleet(prefills: list[PrefillWorker], decodes: list[DecodeWorker]) -> Fleet:
    return Fleet(tuple(prefills), tuple(decodes))
