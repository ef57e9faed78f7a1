"""What can't be deflected, by name: arrangements of a server, and kinds of requests.

Invariant: what isn't proven to give a plain server's output is refused before anything runs; the name of each refusal
stands in `docs/deflection.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duet_engine.plugin.sglang_types import Scheduler, Tokenized
from duet_engine.protocol import RefusalReason

Test = Callable[[Any], bool]

ACTIVATION_TOKENS = 2048
"""SGLang reserves a decode-mode server memory for steps of so many tokens, or of as many as requests may run."""
NO_GRAPHS = "disabled"


def _set(name: str) -> Test:
    return lambda subject: bool(getattr(subject, name, None))


SERVER_TESTS: dict[str, Test] = {
    "pipeline parallelism": lambda scheduler: scheduler.server_args.pp_size > 1,
    "DP attention": _set("require_mlp_sync"),
    "speculative decoding": lambda scheduler: not scheduler.spec_algorithm.is_none(),
    "diffusion decoding": lambda scheduler: scheduler.dllm_config is not None,
    "priority preemption (start with --disable-priority-preemption)": _set("enable_priority_preemption"),
    "sliding-window layers": _set("is_hybrid_swa"),
    "state-space layers": _set("is_hybrid_ssm"),
    "HiSparse": _set("enable_hisparse"),
    "HiCache": lambda scheduler: bool(scheduler.enable_hierarchical_cache or scheduler.enable_decode_hicache),
    "KV offload": lambda scheduler: scheduler.decode_offload_manager is not None,
    "no chunked prefill (start with --chunked-prefill-size)": lambda scheduler: not scheduler.chunked_prefill_size,
    "a dynamic chunk size": lambda scheduler: scheduler.dynamic_chunk_sizer is not None,
}
"""What SGLang's scheduler may be set up for."""

REQUEST_TESTS: dict[str, Test] = {
    "multimodal input": _set("mm_inputs"),
    "input_embeds": lambda request: request.input_embeds is not None,
    "embedding overrides": lambda request: request.positional_embed_overrides is not None,
    # A decode-mode server sends none: SGLang expects the prefill worker's answer to have them.
    "prompt logprobs": lambda request: bool(request.return_logprob and request.logprob_start_len >= 0),
    "lora_path": _set("lora_id"),
    "sessions": lambda request: bool(request.session_id or request.session_params),
    "custom_logit_processor": _set("custom_logit_processor"),
    "beam search": lambda request: (getattr(request.sampling_params, "beam_width", None) or 1) > 1,
    "return_hidden_states": _set("return_hidden_states"),
    "return_routed_experts": _set("return_routed_experts"),
    "return_indexer_topk": _set("return_indexer_topk"),
    "return_sampling_mask": _set("return_sampling_mask"),
    "pooling": _set("token_indices_to_pool"),
}
"""What a tokenized request may ask for."""

OUTPUT_LOGPROBS = "output logprobs"
WORKING = (
    "greedy sampling",
    "seeded sampling",
    "streaming",
    "stop strings",
    OUTPUT_LOGPROBS,
    "grammars (regex, JSON schema)",
    "radix cache",
    "abort and disconnect",
    "pause, retraction and flush",
    "tensor parallelism",
)
"""What is proven to give a plain server's output."""
SEVERAL_ANSWERS = "n > 1 or several prompts in one request"
TAKE_TURNS = {OUTPUT_LOGPROBS: "works; SGLang mixes no step with them, so prefill and decode steps take turns"}
"""What works, and never in a step of prompts and residents together."""


SERVER_LACKS: dict[str, Test] = {
    "steps that hold prompts and residents (--enable-mixed-chunk)": lambda given: not given.enable_mixed_chunk,
    "reuse of computed KV (--disaggregation-decode-enable-radix-cache)": _set("disable_radix_cache"),
    f"memory for its chunks (--chunked-prefill-size {ACTIVATION_TOKENS} or less)": lambda given: (
        given.device != "cpu" and given.chunked_prefill_size > max(ACTIVATION_TOKENS, given.max_running_requests or 0)
    ),
    # Whoever wants no graphs at all has none on an ordinary server either.
    "CUDA graphs of prompts (--cuda-graph-backend-prefill breakable)": lambda given: (
        given.cuda_graph_config.prefill.backend == NO_GRAPHS != given.cuda_graph_config.decode.backend
    ),
}
"""What SGLang leaves out of a decode-mode server against an ordinary one, and how to get it; by what it has made of its
arguments."""


def lacks(server_arguments: Any) -> list[str]:  # noqa: ANN401
    """What makes prompts slower or dearer on this decode worker than on an ordinary server."""
    return [name for name, applies in SERVER_LACKS.items() if applies(server_arguments)]


def not_supported_server(scheduler: Scheduler) -> str | None:
    """Why nothing can be deflected to a worker that is set up like this."""
    names = [name for name, applies in SERVER_TESTS.items() if applies(scheduler)]
    return f"deflection doesn't work with {', '.join(names)}" if names else None


def not_supported_request(request: Tokenized) -> str | None:
    """Why this request can't be deflected."""
    names = [name for name, applies in REQUEST_TESTS.items() if applies(request)]
    return f"can't be deflected: {', '.join(names)}" if names else None


def feature_verdicts() -> dict[str, str]:
    """Each feature and what a deflected request with it gets."""
    requests = dict.fromkeys((*REQUEST_TESTS, SEVERAL_ANSWERS), f"refused ({RefusalReason.UNSUPPORTED})")
    servers = dict.fromkeys(SERVER_TESTS, f"refused ({RefusalReason.DEFLECTION_OFF})")
    return dict.fromkeys(WORKING, "works") | requests | servers
