"""Deflected prompts of one decode worker's scheduler: who is taken, what the next pass computes, who is given up.

Invariant: deflected requests wait in SGLang's own waiting queue, so that aborts, idle checks, health checks,
priorities, pauses and queue metrics see them; they are told from transferred ones by holding no KV. What a pass
computes follows from SGLang's state and the model alone, never from a clock: every rank decides alike. Only giving up
goes by the clock, and only rank 0 does that, through SGLang's broadcast of aborts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from duet_engine.plugin import deflection_view as view
from duet_engine.plugin.deflection_admission import KvNeed, refusal_on_arrival, refusal_while_waiting
from duet_engine.plugin.deflection_chunks import ChunkLimits, PrefillPass, Prompt, Situation, next_pass, seconds_beside
from duet_engine.plugin.deflection_request import Deflection, deflection_of
from duet_engine.plugin.deflection_settings import DeflectionSettings
from duet_engine.plugin.deflection_support import not_supported_server
from duet_engine.plugin.sglang_types import Batch, Request, Scheduler
from duet_engine.policy.chunks import DecodeBatch, headroom_tokens_per_second
from duet_engine.protocol import Knobs, Refusal

LONGEST_OUTPUT_TOKENS = 4096
"""SGLang's own admission reserves no more for a request's output."""


@dataclass(slots=True)
class Lane:
    """The deflection state of one scheduler."""

    scheduler: Scheduler
    settings: DeflectionSettings
    not_supported: str | None = None
    inbox: list[Request] | None = None
    """Takes what comes while SGLang is shown a part of its waiting queue only."""
    unsafe_since: float | None = None
    """Since when not even the smallest chunk of a fresh prompt is safe."""
    stalled_seconds: float = 0.0
    """Predicted time of the steps since the begun prompt's last chunk."""
    requests_total: int = 0
    tokens_total: int = 0
    last_pass: PrefillPass | None = None
    passed_over: int = 0
    """Residents that were there when the last pass was chosen and couldn't take part in it."""
    _limits: tuple[tuple[DeflectionSettings, int, int], ChunkLimits] | None = None

    @classmethod
    def of_server(cls, scheduler: Scheduler, settings: DeflectionSettings) -> Lane:
        """A lane for this scheduler, closed where deflection isn't known to work."""
        return cls(scheduler, settings, not_supported_server(scheduler))

    # --- settings ---

    def apply(self, knobs: Knobs) -> None:
        """Take over live settings."""
        self.settings = replace(self.settings, knobs=knobs)

    @property
    def limits(self) -> ChunkLimits:
        """As long as nobody changes what they follow from they are the same: each pass asks for them."""
        scheduler = self.scheduler
        asked = self.settings, scheduler.page_size, int(scheduler.chunked_prefill_size or 0)
        known = self._limits
        if known is None or known[0][0] is not asked[0] or known[0][1:] != asked[1:]:
            settings, page_tokens, full_chunk_tokens = asked
            limits = settings.limits(page_tokens=page_tokens, full_chunk_tokens=full_chunk_tokens)
            self._limits = known = asked, limits
        return known[1]

    # --- arrival ---

    def refusal(self, request: Request) -> Refusal | None:
        """Why a deflected request that comes now isn't taken; None takes it."""
        need = KvNeed(
            uncached_tokens=request.seqlen - view.cached_tokens(request),
            output_tokens=min(request.sampling_params.max_new_tokens, LONGEST_OUTPUT_TOKENS),
        )
        return refusal_on_arrival(
            need,
            view.room(self.scheduler, most_deflected_requests=self.settings.most_deflected_requests),
            not_supported=self.not_supported,
            enabled=self.settings.knobs.deflection_enabled,
        )

    def take(self, request: Request) -> None:
        """Put it in line: where SGLang's eyes are just now, or beside."""
        (self.scheduler.waiting_queue if self.inbox is None else self.inbox).append(request)

    # --- the next pass ---

    def prompts(self) -> list[tuple[Request, Prompt]]:
        """What may be computed next, in order; all or none of it with logprobs, because these can't mix.

        As many as the largest step could hold: what is behind them waits anyhow.
        """
        found: list[tuple[Request, Prompt]] = []
        room_tokens = int(self.scheduler.chunked_prefill_size or 0)
        for request, tokens in view.unfinished(self.scheduler):
            if room_tokens <= 0 or (found and request.return_logprob != found[0][0].return_logprob):
                break
            bound = _state(request).bound_tokens()
            prompt = Prompt(
                remaining_tokens=tokens,
                context_tokens=request.seqlen - tokens,
                bound_tokens=bound,
                begun=request is self.scheduler.chunked_req,
            )
            found.append((request, prompt))
            room_tokens -= tokens if bound is None else min(tokens, bound)
        return found

    def plan(self, running_batch: Batch) -> tuple[PrefillPass | None, list[Request]]:
        """The next pass and the requests in it; no pass leaves the step to decode."""
        prompts = self.prompts()
        if not prompts:
            return None, []
        for request, _ in prompts:
            _state(request).kv_short = False  # unless this pass finds it so
        situation = self._situation(running_batch, prompts[0][0])
        chosen = next_pass(self.settings.steps, [prompt for _, prompt in prompts], situation, self.limits)
        if chosen is not None and not self._has_kv_for(chosen, situation.residents.requests):
            self.found_no_kv([prompts[share.place][0] for share in chosen.shares])
            chosen = None
        self.passed_over = 0 if chosen is None or situation.mixes else situation.residents.requests
        self._note(chosen, situation, begun=prompts[0][1].begun)
        return chosen, [] if chosen is None else [prompts[share.place][0] for share in chosen.shares]

    def _situation(self, running_batch: Batch, first: Request) -> Situation:
        scheduler, last = self.scheduler, self.scheduler.last_batch
        rows = len(running_batch.reqs)
        pure_prefill = last is not None and last.forward_mode.is_extend() and not last.forward_mode.is_mixed()
        older = rows - view.joined(last, scheduler.chunked_req) if pure_prefill else 0
        return Situation(
            residents=view.decode_batch(running_batch.reqs),
            mixes=bool(scheduler.is_mixed_chunk and not first.return_logprob and not running_batch.return_logprob),
            # Whom the last pass or a transfer has just made a resident sat nothing out: it got its first token.
            residents_sat_out=min(self.passed_over, older) > 0,
            overdue=self.stalled_seconds > self.settings.wait_seconds,
        )

    def _has_kv_for(self, chosen: PrefillPass, resident_requests: int) -> bool:
        """Whether its KV is free now; without residents to wait for, SGLang may find out itself."""
        pages = len(chosen.shares) + resident_requests
        needed = chosen.tokens + pages * self.scheduler.page_size
        return resident_requests == 0 or needed <= view.free_kv_tokens(self.scheduler)

    def _note(self, chosen: PrefillPass | None, situation: Situation, *, begun: bool) -> None:
        """What this pass says about safety, and about how long the begun prompt has stood still."""
        self.last_pass = chosen
        if chosen is None and begun:
            self.stalled_seconds += seconds_beside(self.settings.steps, (), situation)
        else:
            self.stalled_seconds = 0.0
        if chosen is not None or self.headroom_tokens_per_second(situation.residents) > 0:
            self.unsafe_since = None
        elif self.unsafe_since is None:
            self.unsafe_since = time.monotonic()

    def computed(self, requests: Sequence[Request]) -> None:
        """These have got their share of a pass."""
        for request in requests:
            _state(request).chunks_done += 1
            self.tokens_total += request.extend_len

    def found_no_kv(self, requests: Sequence[Request]) -> None:
        """Their chunks were safe, and there was no KV for them."""
        for request in requests:
            _state(request).kv_short = True

    # --- what others ask ---

    def queued_tokens(self) -> int:
        """Deflected prompt tokens that are still to be computed."""
        return sum(tokens for _, tokens in view.unfinished(self.scheduler))

    def headroom_tokens_per_second(self, residents: DecodeBatch | None = None) -> float:
        """Deflected prefill tokens per second that fit beside the residents."""
        limits = self.limits
        if self.not_supported is not None or not self.settings.knobs.deflection_enabled:
            return 0.0
        return headroom_tokens_per_second(
            self.settings.steps,
            view.decode_batch(view.resident_rows(self.scheduler)) if residents is None else residents,
            candidates_tokens=limits.candidates_tokens,
            step_budget_seconds=limits.step_budget_seconds,
            full_chunk_tokens=limits.full_chunk_tokens,
        )

    # --- giving up ---

    def given_up(self, now: float) -> Iterator[tuple[Request, Refusal]]:
        """Waiting requests whose time is over, and why. One that has answered already is never given up."""
        settings = self.settings
        for request in view.waiting(self.scheduler):
            state = _state(request)
            refusal = refusal_while_waiting(
                waited_seconds=now - state.arrived_at,
                unsafe_seconds=None if self.unsafe_since is None else now - self.unsafe_since,
                kv_short=state.kv_short,
                bound_tokens=state.bound_tokens(),
                most_wait_seconds=settings.wait_seconds,
                most_unsafe_seconds=settings.unsafe_seconds,
            )
            if refusal is not None and not request.output_ids:
                yield request, refusal


def _state(request: Request) -> Deflection:
    state = deflection_of(request)
    if state is None:
        raise AssertionError(f"request {request.rid} is prefilled here, and nobody has deflected it")
    return state
