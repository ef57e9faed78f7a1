"""A question of `duet size` without a file: the same documents, from options.

Invariant: an option that is missing or wrong is named as it is written on the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_operator.simulation.documents import InvalidFileError, read_documents
from duet_operator.simulation.resolve import study

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from duet_operator.simulation.study import Study

REQUIRED = {"model": "--model", "gpu": "--gpu", "ttft_milliseconds": "--ttft", "itl_milliseconds": "--itl"}
LOAD = {"rate": "--rate", "input_tokens": "--input", "output_tokens": "--output"}
OTHERS = {
    "ranks": "--tensor-parallel",
    "ttft_unloaded_percent": "--ttft-unloaded",
    "attainment": "--attainment",
    "variation": "--variation",
}


def refuse_beside_a_file(options: Mapping[str, Any]) -> None:
    """Refuse what the file says already.

    Raises:
        InvalidFileError: naming these options.
    """
    given = [flag for name, flag in (REQUIRED | LOAD | OTHERS).items() if name != "gpu" and options[name] is not None]
    if given:
        raise InvalidFileError(f"{', '.join(given)}: the file says this; change it there, or leave the file out")


def asked(options: Mapping[str, Any], *, base: Path) -> Study:
    """The study that the options ask about.

    Raises:
        InvalidFileError: naming the options that are missing, or the value that is wrong.
    """
    needed = REQUIRED if options["trace"] else REQUIRED | LOAD
    missing = [flag for name, flag in needed.items() if options[name] is None]
    if missing:
        without = "" if options["trace"] else " (or --trace for the load)"
        raise InvalidFileError(f"{', '.join(missing)}: required without a file{without}")
    slo = {
        "ttftMilliseconds": options["ttft_milliseconds"],
        "ttftUnloadedPercent": options["ttft_unloaded_percent"],
        "itlMilliseconds": options["itl_milliseconds"],
    }
    if options["attainment"] is not None:
        slo["attainmentBasisPoints"] = round(100 * options["attainment"])
    document = {
        "model": options["model"],
        "gpu": options["gpu"],
        "tensorParallelSize": options["ranks"],
        "seed": options["seed"] or 0,
        "slo": slo,
        "pools": {"prefill": {}, "decode": {}},
        "workload": _workload(options),
    }
    deployment, simulation = read_documents([document], source="options")
    return study(deployment, simulation, name="size", base=base, seed=simulation.seed)


def _workload(options: Mapping[str, Any]) -> dict[str, Any]:
    shared = {name: options[name] for name in ("speed", "copies") if options[name] is not None} | {
        "skipBadLines": options["skip_bad_lines"]
    }
    if options["trace"]:
        return {"trace": str(options["trace"].absolute()), **shared}
    traffic = {
        "requestsPerSecond": options["rate"],
        "inputTokens": options["input_tokens"],
        "outputTokens": options["output_tokens"],
        "variation": options["variation"] or 1.0,
    }
    return {"traffic": traffic, **shared}
