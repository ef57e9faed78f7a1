"""SGLang's command line, from what an engine pod is told and what its user adds.

Invariant: what the DuetDeployment decides can't be contradicted by an argument, and what Duet can't do with an
argument is refused before SGLang starts, each with the thing to change. Pure: the environment comes in as a mapping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from duet_engine.plugin.settings import EngineSettings, SettingError
from duet_engine.protocol import BOOTSTRAP_PORT, ENGINE_PORT, Role

CPU_VARIABLE = "SGLANG_USE_CPU_ENGINE"
SHORTEST_BEGINNING = len("--abc")
DECIDED: Mapping[str, str] = {
    "--model-path": "spec.model",
    "--model": "spec.model",
    "--revision": "spec.model.revision",
    "--served-model-name": "spec.model.servedName",
    "--context-length": "spec.model.contextLength",
    "--tensor-parallel-size": "spec.engine.tensorParallelSize",
    "--tp-size": "spec.engine.tensorParallelSize",
    "--tp": "spec.engine.tensorParallelSize",
    "--disaggregation-mode": "the pool that a worker is in",
    "--disaggregation-transfer-backend": "spec.engine.transferBackend",
    "--disaggregation-bootstrap-port": "Duet: gateways know the port",
    "--host": "the pod's address",
    "--port": "Duet: Services and probes know the port",
}
"""Options that are set for every worker, and what sets them."""
REFUSED: Mapping[str, str] = {
    "--tokenizer-worker-num": "SGLang loads no plugin in its further tokenizer processes; leave it out",
    "--grpc-mode": "Duet speaks HTTP; leave it out",
    "--smg-grpc-mode": "Duet speaks HTTP; leave it out",
    "--grpc-port": "Duet speaks HTTP; leave it out",
    "--enable-http2": "gateways speak HTTP/1.1; leave it out",
    "--use-ray": "a pod runs its ranks itself; leave it out",
    "--encoder-only": "Duet serves models that generate; leave it out",
    "--data-parallel-size": "replicas are what a pool has; raise its count instead",
    "--dp-size": "replicas are what a pool has; raise its count instead",
    "--dp": "replicas are what a pool has; raise its count instead",
    "--nnodes": "a worker is one pod on one node; take a GPU that holds the model, or more of them in one pod",
    "--pipeline-parallel-size": "not tried with Duet's plugin; use spec.engine.tensorParallelSize",
    "--pp-size": "not tried with Duet's plugin; use spec.engine.tensorParallelSize",
    "--enable-pdmux": "SGLang can't combine it with separate prefill and decode; use spec.multiplexing",
    "--pdmux-config-path": "it is of SGLang's own multiplexing; use spec.multiplexing",
    "--sm-group-num": "it is of SGLang's own multiplexing; use spec.multiplexing",
    "--ssl-keyfile": "probes and gateways speak plain HTTP inside the cluster; use a service mesh",
}
REFUSED_VARIABLES: Mapping[str, str] = {
    "SGLANG_RUST_SERVER": "SGLang's Rust server loads no plugin; remove it from spec.engine.env",
}
WITHOUT_GPU = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--disable-cuda-graph", "--sleep-on-idle"),
)

PREFILL_ON_GPU = (*("--chunked-prefill-size", "2048", "--cuda-graph-backend-prefill", "breakable"),)
"""A decode-mode SGLang reserves activations for 2,048 tokens whatever the chunk, and captures no graphs for prompts:
`breakable` ones are what it takes in its other modes."""


class ArgumentError(ValueError):
    """An argument or variable that can't be used; the message says what to change."""


def command_line(environment: Mapping[str, str], given: Sequence[str]) -> tuple[str, ...]:
    """Arguments of `sglang.launch_server`.

    Raises:
        ArgumentError, SettingError: naming what to change.
    """
    settings = EngineSettings.read(environment)
    _check(environment, given)
    own = [*_decided(environment, settings), *_for_role(settings.role, cpu=environment.get(CPU_VARIABLE) == "1")]
    if "--enable-pd-role-switch" in given and settings.role is Role.PREFILL and "--disable-radix-cache" not in given:
        # Otherwise the scheduler dies at its second request after a switch: it takes its prefix cache for a leak.
        own.append("--disaggregation-decode-enable-radix-cache")
    return (*_unless_given(own, given), *given)


def _check(environment: Mapping[str, str], given: Sequence[str]) -> None:
    options = {argument.partition("=")[0].replace("_", "-") for argument in given if argument.startswith("--")}
    for option in sorted(options):
        for known in (*DECIDED, *REFUSED):
            # SGLang's parser takes an option's beginning for the option.
            if known == option or (known.startswith(option) and len(option) >= SHORTEST_BEGINNING):
                raise ArgumentError(_refusal(option, known))
    for name, reason in REFUSED_VARIABLES.items():
        if environment.get(name, "").lower() not in ("", "0", "false"):
            raise ArgumentError(f"{name}: {reason}")
    plugins = environment.get("SGLANG_PLUGINS", "")
    if plugins and "duet" not in (name.strip() for name in plugins.split(",")):
        raise ArgumentError(f"SGLANG_PLUGINS={plugins} leaves Duet's plugin out: add `duet` to it")
    backup = "--disaggregation-decode-retraction-backup"
    if environment.get(CPU_VARIABLE) == "1" and _value(given, backup) == "host_pool":
        raise ArgumentError(f"{backup} host_pool needs a GPU: take `none` without one")


def _refusal(option: str, known: str) -> str:
    if known in DECIDED:
        return f"{option} is decided by {DECIDED[known]}: remove it from spec.engine.args"
    return f"{option}: {REFUSED[known]}"


def _decided(environment: Mapping[str, str], settings: EngineSettings) -> list[str]:
    """What the DuetDeployment says."""
    model = environment.get("DUET_MODEL_PATH") or settings.model_id
    if not model:
        raise SettingError("DUET_MODEL_ID: is needed; set it to a model's id on the hub or to a folder")
    options = ["--model-path", model, "--host", environment.get("POD_IP") or "127.0.0.1"]
    options += ["--port", environment.get("DUET_PORT") or str(ENGINE_PORT), "--enable-metrics"]
    for option, name in (
        ("--revision", "DUET_MODEL_REVISION"),
        ("--served-model-name", "DUET_SERVED_NAME"),
        ("--context-length", "DUET_CONTEXT_LENGTH"),
        ("--tensor-parallel-size", "DUET_TENSOR_PARALLEL_SIZE"),
    ):
        if environment.get(name):
            options += [option, environment[name]]
    if settings.role is not Role.UNIFIED:
        options += ["--disaggregation-mode", settings.role.value]
        options += ["--disaggregation-transfer-backend", environment.get("DUET_TRANSFER_BACKEND") or "mooncake"]
        options += ["--disaggregation-bootstrap-port", environment.get("DUET_BOOTSTRAP_PORT") or str(BOOTSTRAP_PORT)]
    return options


def _for_role(role: Role, *, cpu: bool) -> list[str]:
    """What a worker of this role needs beside; an argument of the user's replaces it."""
    options = list(WITHOUT_GPU) if cpu else []
    if role is Role.DECODE:
        # What a decode-mode server lacks against an ordinary one: prompts beside decode, and reuse of their KV.
        options += ["--enable-mixed-chunk", "--disaggregation-decode-enable-radix-cache"]
        options += ["--disaggregation-decode-retraction-backup", "none"] if cpu else list(PREFILL_ON_GPU)
    elif role is Role.PREFILL and cpu:
        # With overlap KV is sent early, by events that only a GPU has.
        options += ["--disable-overlap-schedule"]
    return options


def _unless_given(own: Sequence[str], given: Sequence[str]) -> list[str]:
    """Our options but those that the user has chosen otherwise."""
    chosen = {argument.partition("=")[0] for argument in given if argument.startswith("--")}
    kept: list[str] = []
    keep = True
    for part in own:
        if part.startswith("--"):
            keep = part not in chosen
        if keep:
            kept.append(part)
    return kept


def _value(given: Sequence[str], option: str) -> str | None:
    for place, argument in enumerate(given):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else (given[place + 1] if place + 1 < len(given) else None)
    return None
