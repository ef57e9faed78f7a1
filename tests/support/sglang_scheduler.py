"""One SGLang scheduler in one process, fed by a script instead of by HTTP: cheaper than a server, always the same.

`running_scheduler` starts this file with SGLang's interpreter; its second half runs there. A scenario is a list of
events. Each happens once its condition holds, in order, one look per turn of the scheduler's loop:
`{"after": {"rid": tokens}, "submit": [...]}`, `{"turns": 5, "abort": "rid"}`, `{"pause": "retract"}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

MOST_TURNS = 20_000
STEPS = {
    "prefill_base_seconds": 0.004,
    "prefill_per_token_seconds": 2e-5,
    "decode_base_seconds": 0.004,
    "decode_per_request_seconds": 3e-4,
    "decode_per_context_token_seconds": 5e-7,
}
"""A model that makes chunks small beside residents: what the CPU really takes doesn't matter to a script."""


class SchedulerDied(Exception):
    """The scheduler's process ended with an error; what it said."""


class SchedulerProcess:
    """A scheduler that plays scenarios, one after the other."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process = process
        self._log = log

    def play(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What these events brought, once everything in them has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(list(events)) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            raise SchedulerDied(self._log.read()[-6000:])
        result: dict[str, Any] = json.loads(answer)
        return result


@contextmanager
def running_scheduler(
    *options: str,
    mode: str = "decode",
    model: str = "tiny-llama",
    without_hooks: Sequence[str] = (),
    knobs: Mapping[str, Any] | None = None,
    steps: Mapping[str, float] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[SchedulerProcess]:
    """A scheduler of SGLang's decode mode with the deflection's hooks, or of its ordinary mode (`plain`)."""
    from duet_dev import engine_environment
    from duet_dev.processes import guarded

    order = {
        "mode": mode,
        "without_hooks": list(without_hooks),
        "knobs": {"itl_milliseconds": 20, "chunk_candidates_tokens": [512, 256, 128, 64, 32], **(knobs or {})},
        "steps": dict(steps or STEPS),
        "options": ["--model-path", str(engine_environment.model_folder(model)), *options],
    }
    # Seeded sampling is compiled otherwise, by a C++ compiler that need not be here.
    always = {"SGLANG_PLUGINS": "none", "TORCHDYNAMO_DISABLE": "1", "DUET_SCHEDULER_ORDER": json.dumps(order)}
    own = {**engine_environment.environment(), **always, **(environment or {})}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            guarded([str(engine_environment.engine_python()), __file__]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **own},
        ) as process,
    ):
        try:
            yield SchedulerProcess(process, log)
        finally:
            process.kill()


Scenarios = Mapping[str, Sequence[Mapping[str, Any]]]


def play_all(scenarios: Scenarios, *options: str, **more: Any) -> dict[str, Any]:
    """Each scenario's result, on one scheduler in turn."""
    with running_scheduler(*options, **more) as scheduler:
        return play_each(scheduler, scenarios)


def play_each(scheduler: SchedulerProcess, scenarios: Scenarios) -> dict[str, Any]:
    """Each scenario's result, in turn."""
    return {name: scheduler.play(events) for name, events in scenarios.items()}


# --- from here on in SGLang's interpreter ---

SMALL = (
    *("--dtype", "float32", "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--mem-fraction-static", "0.5", "--max-total-tokens", "16384", "--max-running-requests", "64"),
    *("--disable-cuda-graph", "--skip-tokenizer-init", "--chunked-prefill-size", "512", "--log-level", "warning"),
)
DECODE = (
    *("--disaggregation-mode", "decode", "--disaggregation-transfer-backend", "mooncake_tcp"),
    *(
        "--disaggregation-decode-retraction-backup",
        "none",
        "--enable-mixed-chunk",
        "--num-reserved-decode-tokens",
        "128",
    ),
)


class Recorder:
    """Takes what the scheduler would send to the detokenizer and the tokenizer."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[float]] = {}
        self.ended: dict[str, Any] = {}
        self.cached: dict[str, int] = {}
        self.times: dict[str, list[float]] = {}

    def send_output(self, output: Any, _request: Any = None) -> None:
        name = type(output).__name__
        if name == "AbortReq":
            self.ended[output.rid] = output.finished_reason or {"type": "abort"}
        elif name == "BatchTokenIDOutput":
            for place, rid in enumerate(output.rids):
                self.tokens.setdefault(rid, []).extend(list((output.output_ids or {})[place] or []))
                self.times.setdefault(rid, []).append(time.perf_counter())
                self.cached[rid] = output.cached_tokens[place]
                if output.output_token_logprobs_val and output.output_token_logprobs_val[place]:
                    values = output.output_token_logprobs_val[place]
                    self.logprobs.setdefault(rid, []).extend(float(value) for value in values)
                if output.finished_reasons[place] is not None:
                    self.ended[rid] = output.finished_reasons[place]


class Bench:
    """The scheduler and what was seen of it."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.recorder = Recorder()
        self.deflected = order["mode"] == "decode"
        self.scheduler = _scheduler(order)
        self.steps: list[tuple[str, int, int]] = []
        for channels in (self.scheduler.ipc_channels, self.scheduler.output_streamer):
            for name in ("send_to_detokenizer", "send_to_tokenizer"):
                if hasattr(channels, name):
                    object.__setattr__(channels, name, self.recorder)
        run = self.scheduler.run_batch

        def observed(batch: Any, *more: Any, **options: Any) -> Any:
            chunk = (batch.extend_num_tokens or 0) if batch.forward_mode.is_extend() else 0
            self.steps.append((batch.forward_mode.name, batch.batch_size(), chunk))
            return run(batch, *more, **options)

        self.scheduler.run_batch = observed

    def play(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Run one scenario until everything has ended."""
        scheduler, recorder = self.scheduler, self.recorder
        recorder.clear()
        self.steps.clear()
        source = self._inputs(events)

        def pull(_receiver: Any) -> list[Any]:
            try:
                return next(source)
            except StopIteration:
                scheduler.gracefully_exit = True
                return []

        type(scheduler.request_receiver)._pull_raw_reqs = pull
        scheduler.gracefully_exit = False
        began = time.perf_counter()
        scheduler.run_event_loop()
        return {
            "tokens": recorder.tokens,
            "ended": recorder.ended,
            "cached": recorder.cached,
            "times": recorder.times,
            "logprobs": recorder.logprobs,
            "steps": self.steps.copy(),
            "seconds": time.perf_counter() - began,
            "free_tokens": scheduler.token_to_kv_pool_allocator.available_size()
            + scheduler.tree_cache.evictable_size(),
            "free_rows": scheduler.req_to_token_pool.available_size(),
            "idle": scheduler.is_fully_idle(),
            "notes": self.notes,
        }

    def _inputs(self, events: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
        self.notes: list[Any] = []
        awaited: set[str] = set()
        turns = 0
        for event in events:
            until = turns + event.get("turns", 0)
            while turns < until or not self._holds(event.get("after", {})):
                turns += 1
                assert turns < MOST_TURNS, f"never came: {event.get('after')}; {self._state()}"
                yield []
            awaited |= {fields["rid"] for fields in event.get("submit", ())}
            yield self._messages(event)
            turns += 1
        while not awaited <= self.recorder.ended.keys():
            turns += 1
            assert turns < MOST_TURNS, f"never ended: {awaited - self.recorder.ended.keys()}; {self._state()}"
            yield []
        for _ in range(4):
            yield []

    def _state(self) -> str:
        scheduler = self.scheduler
        counts = {rid: len(tokens) for rid, tokens in self.recorder.tokens.items()}
        queues = f"{len(scheduler.waiting_queue)} waiting, {len(scheduler.running_batch.reqs)} running"
        return f"{queues}, tokens {counts}, ended {self.recorder.ended}, last steps {self.steps[-5:]}"

    def _holds(self, condition: Mapping[str, int]) -> bool:
        return all(len(self.recorder.tokens.get(rid, [])) >= tokens for rid, tokens in condition.items())

    def _messages(self, event: Mapping[str, Any]) -> list[Any]:
        from sglang.srt.managers import io_struct

        messages: list[Any] = [self._request(**fields) for fields in event.get("submit", ())]
        if "abort" in event:
            messages.append(io_struct.AbortReq(rid=event["abort"]))
        if "pause" in event:
            messages.append(io_struct.PauseGenerationReqInput(mode=event["pause"]))
        if "continue" in event:
            messages.append(io_struct.ContinueGenerationReqInput())
        if "flush" in event:
            self.notes.append(self.scheduler.flush_cache())
        if "idle" in event:
            self.notes.append(self.scheduler.is_fully_idle())
        if "busy_for_health_check" in event:
            self.notes.append(not self.scheduler.is_fully_idle(for_health_check=True))
        if "knobs" in event:
            self._set(event["knobs"], event.get("steps"))
        if "queue" in event:
            self.notes.append(len(self.scheduler.waiting_queue))
        return messages

    def _set(self, knobs: Mapping[str, Any], steps: Mapping[str, float] | None) -> None:
        """Other settings from here on."""
        _open_lane(self.scheduler, knobs, steps or STEPS)

    def _request(
        self,
        rid: str,
        ids: Sequence[int],
        tokens: int = 8,
        sampling: Mapping[str, Any] | None = None,
        dispatch: Mapping[str, Any] | None = None,
        logprobs: bool = False,
        without_kv: bool = False,
        priority: int | None = None,
    ) -> Any:
        from sglang.srt.disaggregation.utils import DisaggregationMode
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
        from sglang.srt.sampling.sampling_params import SamplingParams

        from duet_engine.plugin.deflection_request import mark
        from duet_engine.protocol import Dispatch

        params = SamplingParams(max_new_tokens=tokens, **{"ignore_eos": True, "temperature": 0.0, **(sampling or {})})
        params.normalize(None)
        if self.deflected and not without_kv:
            params.custom_params = mark(None, Dispatch(gateway="g", sequence=1, deflected=True, **(dispatch or {})))
        return TokenizedGenerateReqInput(
            rid=rid,
            input_text="",
            input_ids=array("q", ids),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=params,
            return_logprob=logprobs,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=True,
            priority=priority,
            bootstrap_host="2.2.2.2" if without_kv else None,
            bootstrap_room=1 if self.deflected else None,
            time_stats=APIServerReqTimeStats(disagg_mode=DisaggregationMode.NULL),
        )


def _free_tokens(scheduler: Any) -> int:
    return int(scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size())


def _scheduler(order: Mapping[str, Any]) -> Any:
    from sglang.srt.managers import scheduler as module
    from sglang.srt.server_args import PortArgs, prepare_server_args
    from sglang_changes import honour_seeds

    options = [*SMALL, *order["options"]]
    if order["mode"] == "decode":
        _apply_hooks(order["without_hooks"])
        options = [*SMALL, *DECODE, *order["options"]]
    arguments = prepare_server_args(options)
    ports = PortArgs.init_new(arguments)
    rank = module.spawn_world_rank(arguments, tp_rank=0, pp_rank=0)
    module.publish(arguments, role="scheduler", ranks=module.SpawnRanks(world_rank=rank, dp_rank=None, gpu_id=0))
    scheduler = module.Scheduler(arguments, ports)
    honour_seeds()
    if order["mode"] == "decode":
        _open_lane(scheduler, order["knobs"], order["steps"])
    return scheduler


def _open_lane(scheduler: Any, knobs: Mapping[str, Any], steps: Mapping[str, float]) -> None:
    from step_times import LinearSteps

    from duet_engine.plugin.deflection_scheduler import open_lane
    from duet_engine.plugin.deflection_settings import DeflectionSettings
    from duet_engine.protocol import Knobs

    settings = DeflectionSettings(
        knobs=Knobs(generation=0, **knobs), steps=LinearSteps(**steps), most_deflected_requests=512
    )
    open_lane(scheduler, settings)


def _apply_hooks(without: Sequence[str]) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from duet_engine.plugin.deflection_scheduler import HOOKS
    from duet_engine.plugin.without_gpu import prepare

    prepare()
    for hook in HOOKS:
        if hook.function.__name__ not in without:
            HookRegistry.register(hook.path, hook.function, HookType(hook.kind.value))
    HookRegistry.apply_hooks()


def main() -> None:
    """Play the scenarios on standard input until it ends, and leave without SGLang's threads having a say."""
    order = json.loads(os.environ["DUET_SCHEDULER_ORDER"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = Bench(order)
    for line in sys.stdin:
        answers.write(json.dumps(bench.play(json.loads(line))) + "\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
