"""A request on its way: what is left to do for it, and where it has been.

Invariant: a flight is in one stage; `OVER` is final. A request that a worker lost is tried again as another flight, so
whatever still points to the old one finds it over.
"""

from __future__ import annotations

from enum import Enum, auto
from math import nan
from typing import TYPE_CHECKING

from duet_engine.policy.queueing import COLD, Waiting
from duet_engine.simulator.kv import BLOCK_TOKENS, Holding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.simulator.decoding_worker import DecodingWorker
    from duet_engine.simulator.prefill_worker import PrefillWorker


class Stage(Enum):
    """Where a flight is; the names are SGLang's queues."""

    GATEWAY = auto()
    BOOTSTRAP = auto()
    WAITING = auto()
    INFLIGHT = auto()
    """Computed; KV on its way."""
    TRANSFERRED = auto()
    PROMPT = auto()
    """Waits for a local prefill, or is in it."""
    RUNNING = auto()
    RETRACTED = auto()
    OVER = auto()


class Flight(Waiting):
    """One try of one request."""

    __slots__ = (
        "block_hashes",
        "cached_tokens",
        "chunk_bounds",
        "chunks_done",
        "class_index",
        "computed_tokens",
        "decode",
        "decode_cached_tokens",
        "dispatched_at",
        "finish_step",
        "first_token_at",
        "gaps_over_objective",
        "gaps_over_start",
        "generated_tokens",
        "index",
        "input_tokens",
        "kv",
        "kv_arrived_at",
        "last_token_at",
        "limit_index",
        "local",
        "output_tokens",
        "predicted_ttft_seconds",
        "prefill",
        "prefill_ended_at",
        "prefill_kv",
        "prefill_started_at",
        "progressed_at",
        "queued_seconds",
        "retractions",
        "retries",
        "sent_tokens",
        "stage",
    )

    def __init__(
        self,
        index: int,
        *,
        arrived_at: float,
        output_reserve_tokens: int,
        class_index: int = 0,
        limit_index: int = 0,
        input_tokens: int,
        output_tokens: int,
        block_hashes: tuple[int, ...] = (),
        warm: Mapping[str, int] = COLD,
        excluded_until: dict[str, float] | None = None,
        class_name: str = "default",
    ) -> None:
        super().__init__(
            arrived_at=arrived_at,
            prompt_tokens=input_tokens,
            output_reserve_tokens=output_reserve_tokens,
            warm=warm,
            excluded_until=excluded_until,
            class_name=class_name,
        )
        self.index = index
        self.class_index = class_index
        self.limit_index = limit_index
        """Of its ITL objective among those of the run."""
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        self.block_hashes = block_hashes
        self.stage = Stage.GATEWAY
        self.prefill: PrefillWorker | None = None
        self.decode: DecodingWorker | None = None
        self.local = False
        self.chunk_bounds: tuple[int, ...] = ()
        self.chunks_done = self.computed_tokens = self.cached_tokens = self.sent_tokens = 0
        self.generated_tokens = 0
        """As of the last time that somebody looked: a running one has more by its worker's steps."""
        self.decode_cached_tokens = 0
        self.queued_seconds = 0.0
        """Believed work ahead of others on its prefill worker."""
        self.prefill_kv = Holding()
        self.kv = Holding()
        """On the worker that decodes it."""
        self.finish_step = -1
        """Decode step of its worker that gives its last token; -1: it doesn't run."""
        self.gaps_over_objective = self.gaps_over_start = 0
        self.retractions = self.retries = 0
        self.dispatched_at = self.predicted_ttft_seconds = self.prefill_started_at = self.prefill_ended_at = nan
        self.kv_arrived_at = self.first_token_at = self.last_token_at = nan
        self.progressed_at = 0.0

    @property
    def context_tokens(self) -> int:
        return self.input_tokens + self.generated_tokens

    @property
    def uncomputed_tokens(self) -> int:
        """What prefill must still compute; a retracted request may have to compute its own output again."""
        return self.context_tokens - self.computed_tokens

    @property
    def full_blocks(self) -> tuple[int, ...]:
        """Blocks that the prompt fills, all but its last token: that one is always computed."""
        return self.block_hashes[: (self.input_tokens - 1) // BLOCK_TOKENS]

    @property
    def over(self) -> bool:
        return self.stage is Stage.OVER

    def again(self) -> Flight:
        """The same request for another try."""
        flight = Flight(
            self.index,
            arrived_at=self.arrived_at,
            output_reserve_tokens=self.prompt.output_reserve_tokens,
            class_index=self.class_index,
            limit_index=self.limit_index,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            block_hashes=self.block_hashes,
            warm=self.prompt.warm,
            excluded_until=self.excluded_until,
            class_name=self.class_name,
        )
        flight.unloaded_ttft_seconds, flight.retries = self.unloaded_ttft_seconds, self.retries + 1
        return flight
