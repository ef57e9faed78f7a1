"""SGLang's own benchmark of a server, unmodified, from the environment of `make engine-env`; it starts no engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from duet_dev import engine_environment

REQUESTS = 12


def bench_serving(url: str, *, model: str, folder: Path) -> dict[str, Any]:
    """Run it against a server's OpenAI endpoint, as its documentation says; its report."""
    report = folder / "report.jsonl"
    options = {
        "--backend": "sglang-oai",
        "--base-url": url,
        "--model": model,
        "--tokenizer": str(engine_environment.model_folder("tiny-llama")),
        "--dataset-name": "random-ids",
        "--num-prompts": str(REQUESTS),
        "--request-rate": "8",
        "--seed": "1",
        "--random-input-len": "60",
        "--random-output-len": "10",
        "--output-file": str(report),
    }
    command = [str(engine_environment.engine_python()), "-m", "sglang.bench_serving"]
    command += [part for option in options.items() for part in option]
    environment = {**os.environ, **engine_environment.environment()}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(report.read_text())
    return found
