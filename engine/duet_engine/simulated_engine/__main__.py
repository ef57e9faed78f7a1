"""`duet-simulated-engine`: options and environment of one simulated engine.

Invariant: every option can come from the environment, and a value that can't be used ends the process with the
option's name.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

PROCESS_STARTED_AT = time.monotonic()

import click  # noqa: E402 - the cold start counts from the process's start, imports included
import uvloop  # noqa: E402

from duet_engine.perf import catalog  # noqa: E402
from duet_engine.perf.models import find_shape  # noqa: E402
from duet_engine.protocol import BOOTSTRAP_PORT, ENGINE_PORT, Role, WorkerProfile  # noqa: E402
from duet_engine.simulated_engine.app import App  # noqa: E402
from duet_engine.simulated_engine.settings import Settings, worker_profile  # noqa: E402

AT_LEAST_ZERO = click.FloatRange(min=0)
COUNT = click.IntRange(min=1)
TRANSFER_BACKENDS = ("mooncake", "mooncake_tcp", "nixl")
PORT = click.IntRange(0, 65_535)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"auto_envvar_prefix": "DUET_SIMULATED", "show_default": True})
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), default=Role.UNIFIED.value, envvar="DUET_ROLE"
)
@click.option("--host", default="127.0.0.1", envvar="POD_IP", show_envvar=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=ENGINE_PORT)
@click.option("--bootstrap-port", type=PORT, default=BOOTSTRAP_PORT, help="Where decode workers claim rooms (prefill).")
@click.option("--gpu", default="h100-sxm", help="GPU or MIG slice, such as h100-sxm or h100-1g.10gb.")
@click.option("--model", default=catalog.REFERENCE_MODEL, envvar="DUET_MODEL_ID", show_envvar=True)
@click.option(
    "--model-path",
    default=None,
    envvar="DUET_MODEL_PATH",
    help="Id or directory. Defaults to the model.",
)
@click.option("--model-revision", default=None, envvar="DUET_MODEL_REVISION", help="Shown, not used.")
@click.option("--served-name", default=None, envvar="DUET_SERVED_NAME", help="Defaults to the model.")
@click.option(
    "--context-length", type=COUNT, default=None, envvar="DUET_CONTEXT_LENGTH", help="Defaults to the model's."
)
@click.option("--tensor-parallel-size", type=COUNT, default=1, envvar="DUET_TENSOR_PARALLEL_SIZE")
@click.option(
    "--transfer-backend", type=click.Choice(TRANSFER_BACKENDS), default="mooncake", envvar="DUET_TRANSFER_BACKEND"
)
@click.option("--itl-milliseconds", type=COUNT, default=50, envvar="DUET_ITL_MILLISECONDS")
@click.option("--drain-timeout-seconds", type=AT_LEAST_ZERO, default=600.0, envvar="DUET_DRAIN_TIMEOUT_SECONDS")
@click.option("--revision", default="", envvar="DUET_REVISION")
@click.option("--worker", default=None, envvar="POD_NAME", help="Name in documents; defaults to host and port.")
@click.option("--cold-start-seconds", type=AT_LEAST_ZERO, default=8.0)
@click.option("--cold-start-spread-seconds", type=AT_LEAST_ZERO, default=0.0, help="Up to this much more, by seed.")
@click.option("--kv-capacity-tokens", type=COUNT, default=None, help="Defaults to what the GPU's memory holds.")
@click.option("--max-running-requests", type=COUNT, default=None, help=f"Defaults to {catalog.MAX_RUNNING_REQUESTS}.")
@click.option("--chunked-prefill-tokens", type=COUNT, default=None, help="Defaults to SGLang's for the GPU's memory.")
@click.option("--reserved-decode-tokens", type=click.IntRange(min=0), default=512)
@click.option("--max-deflected-requests", type=COUNT, default=16)
@click.option("--deflected-wait-seconds", type=AT_LEAST_ZERO, default=2.0)
@click.option("--bootstrap-timeout-seconds", type=AT_LEAST_ZERO, default=300.0)
@click.option("--mean-output-tokens", type=click.FloatRange(min=1), default=256.0, help="Without ignore_eos.")
@click.option("--step-noise", type=click.FloatRange(0, 1), default=0.0, help="Relative deviation of step times.")
@click.option("--seed", type=int, default=0)
@click.option("--watchdog-seconds", type=AT_LEAST_ZERO, default=30.0)
@click.option("--keep-alive-seconds", type=AT_LEAST_ZERO, default=5.0, help="SGLang closes idle connections so soon.")
@click.option("--allow-faults", is_flag=True, help="Serve /simulate/faults.")
@click.option("--trust-file", type=FILE, envvar="DUET_TRUST_FILE", help="Whose tokens to accept: a trust document.")
@click.option("--shared-token-file", type=FILE, envvar="DUET_SHARED_TOKEN_FILE", help="A token to accept.")
@click.option(
    "--local-token-file", type=FILE, envvar="DUET_LOCAL_TOKEN_FILE", help="Written at the start, for `duet-engine`."
)
def main(
    role: str,
    model: str,
    model_path: str | None,
    served_name: str | None,
    context_length: int | None,
    worker: str | None,
    gpu: str,
    tensor_parallel_size: int,
    kv_capacity_tokens: int | None,
    max_running_requests: int | None,
    chunked_prefill_tokens: int | None,
    host: str,
    port: int,
    **options: object,
) -> None:
    """An HTTP server that behaves like SGLang with Duet's plugin and takes the time that a chosen GPU would."""
    profile = _profile(
        gpu=gpu,
        model=model,
        role=Role(role),
        tensor_parallel_size=tensor_parallel_size,
        kv_capacity_tokens=kv_capacity_tokens,
        max_running_requests=max_running_requests,
        chunked_prefill_tokens=chunked_prefill_tokens,
    )
    settings = Settings(
        role=Role(role),
        host=host,
        port=port,
        gpu=gpu,
        model=model,
        model_path=_model_path(model_path or model),
        served_name=served_name or model,
        context_length=context_length or find_shape(model).context_length,
        tensor_parallel_size=tensor_parallel_size,
        worker=worker or f"{host}:{port}",
        **options,  # type: ignore[arg-type]  # click has checked the types above
    )
    sys.exit(uvloop.run(_serve(settings, profile)))


def _profile(**choices: object) -> WorkerProfile:
    """The worker's profile; a GPU or model that can't be used is a bad option, not a traceback."""
    try:
        return worker_profile(**choices)  # type: ignore[arg-type]  # click has checked the types
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--gpu', '--model'") from error


def _model_path(path: str) -> str:
    """Where SGLang would load from. Nothing is read, but a volume that isn't there must not go unnoticed."""
    if path.startswith("/") and not Path(path).is_dir():
        raise click.BadParameter(f"{path} is no directory; mount the weights there", param_hint="'--model-path'")
    return path


async def _serve(settings: Settings, profile: WorkerProfile) -> int:
    return await App(settings, profile).run(PROCESS_STARTED_AT)


if __name__ == "__main__":
    main()
