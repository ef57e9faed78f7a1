"""`duet predict` and `duet calibrate` on tables of steps, through the command line."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from duet_engine.perf.efficiencies import efficiencies_for, from_file
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.protocol import Role, StepKind
from duet_engine.step_log import StepLogEntry, StepLogHead, entry_line, head_line, pairs
from duet_operator.cli import main

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "system,model,tp,phase,batch,isl_or_ctx"
LLAMA = "meta-llama/Meta-Llama-3.1-8B"


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _predict(folder: Path, *rows: str, header: str = HEADER, more: tuple[str | Path, ...] = ()) -> Result:
    (folder / "in.csv").write_text("\n".join([header, *rows]) + "\n")
    return _run("predict", "--csv", folder / "in.csv", "--out", folder / "out.csv", *more)


def _written(folder: Path) -> list[dict[str, str]]:
    with (folder / "out.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_adds_what_the_model_says(tmp_path: Path) -> None:
    result = _predict(
        tmp_path, f"h100_sxm,{LLAMA},1,decode,64,2048", "l40s,Qwen/Qwen3-32B,1,prefill,1,512", header=HEADER
    )
    assert result.exit_code == 0, result.output
    known, unknown = _written(tmp_path)
    seconds = Roofline(find_shape(LLAMA), find_gpu("h100-sxm")).step_seconds(StepBatch.decode(64, 64 * 2048))
    assert float(known["predicted_ms"]) == pytest.approx(seconds * 1e3, abs=1e-3)
    assert (known["kv_fits"], known["calibration"], known["basis"]) == ("yes", "calibrated", "kernel-composed")
    assert (unknown["kv_fits"], unknown["calibration"], unknown["basis"]) == ("no", "data-sheet only", "data-sheet")


def test_other_columns_are_carried_along(tmp_path: Path) -> None:
    _predict(tmp_path, f"h100_sxm,{LLAMA},1,decode,64,2048,mine", header=f"{HEADER},note")
    assert _written(tmp_path)[0]["note"] == "mine"


def test_bad_rows_are_named_and_the_others_predicted(tmp_path: Path) -> None:
    result = _predict(
        tmp_path,
        f"h100_sxm,{LLAMA},1,decode,64,2048",
        f"v100,{LLAMA},1,decode,1,512",
        f"h100_sxm,{LLAMA},3,decode,1,512",
        f"h100_sxm,{LLAMA},1,both,1,512",
        f"h100_sxm,{LLAMA},1,decode,none,512",
        "h100_sxm,acme/Rocket-9B,1,decode,1,512",
        f"h100_sxm,{LLAMA},1,decode",
    )
    assert result.exit_code == 1
    for line, reason in enumerate(
        (
            "unknown GPU 'v100'",
            "tp: 32 attention heads can't be divided among 3 GPUs",
            "phase: must be prefill or decode, got 'both'",
            "batch: must be a whole number from 1 on, got 'none'",
            "unknown model 'acme/Rocket-9B'",
            "has more or fewer cells than the header",
        ),
        start=3,
    ):
        assert f"in.csv:{line}: {reason}" in result.output
    assert [row["predicted_ms"] != "" for row in _written(tmp_path)] == [True] + 6 * [False]


def test_a_missing_column_is_named_and_nothing_written(tmp_path: Path) -> None:
    result = _predict(tmp_path, "h100_sxm", header="system")
    assert result.exit_code == 1
    assert "the columns batch, isl_or_ctx, model, phase, tp are missing" in result.output
    assert not (tmp_path / "out.csv").exists()


def test_a_config_json_stands_for_a_model(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    _predict(tmp_path, f"h100_sxm,{LLAMA},1,decode,8,100", f"h100_sxm,{tmp_path / 'config.json'},1,decode,8,100")
    by_id, by_file = _written(tmp_path)
    assert by_id["predicted_ms"] == by_file["predicted_ms"]


def _slow_memory() -> Roofline:
    """An H100 that moves less of its memory than the shipped figures say."""
    gpu, slow = find_gpu("h100-sxm"), {"linear_bandwidth": 0.7, "attention_bandwidth": 0.75}
    known = efficiencies_for(gpu)
    calibrated = replace(known, efficiencies=known.efficiencies.with_values(slow))
    return Roofline(find_shape(LLAMA), gpu, calibrated=calibrated)


def _timed(folder: Path, phases: tuple[str, ...]) -> Path:
    roofline = _slow_memory()
    rows = [f"{HEADER},latency_ms"]
    for tokens in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 32_768) if "prefill" in phases else ():
        milliseconds = roofline.step_seconds(StepBatch.prefill(tokens)) * 1e3
        rows.append(f"h100_sxm,{LLAMA},1,prefill,1,{tokens},{milliseconds}")
    for batch in (1, 32, 128, 256) if "decode" in phases else ():
        for context in (256, 1024, 4096, 16_384):
            milliseconds = roofline.step_seconds(StepBatch.decode(batch, batch * context)) * 1e3
            rows.append(f"h100_sxm,{LLAMA},1,decode,{batch},{context},{milliseconds}")
    (folder / "steps.csv").write_text("\n".join(rows) + "\n")
    return folder / "steps.csv"


def test_what_calibrate_writes_predict_reads(tmp_path: Path) -> None:
    steps, fitted = _timed(tmp_path, ("prefill", "decode")), tmp_path / "fitted.json"
    result = _run("calibrate", "--csv", steps, "--out", fitted)
    assert result.exit_code == 0, result.output
    row = f"h100_sxm,{LLAMA},1,decode,128,16384"
    _predict(tmp_path, row)
    before = _written(tmp_path)[0]
    _predict(tmp_path, row, more=("--calibration", fitted))
    after = _written(tmp_path)[0]
    truth = _slow_memory().step_seconds(StepBatch.decode(128, 128 * 16_384)) * 1e3
    assert float(after["predicted_ms"]) == pytest.approx(truth, rel=0.02) != float(before["predicted_ms"])
    assert (before["basis"], after["basis"]) == ("kernel-composed", "measured")


def test_calibrate_names_what_the_rows_cannot_tell(tmp_path: Path) -> None:
    result = _run("calibrate", "--csv", _timed(tmp_path, ("decode",)), "--out", tmp_path / "fitted.json")
    assert result.exit_code == 1
    assert "h100-sxm: the rows can't identify" in result.output
    assert "attention_compute" in result.output
    assert not (tmp_path / "fitted.json").exists()


def test_calibrate_needs_the_measured_times(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text(f"{HEADER}\nh100_sxm,{LLAMA},1,decode,8,100\n")
    result = _run("calibrate", "--csv", tmp_path / "steps.csv")
    assert result.exit_code == 1
    assert "steps.csv:2: latency_ms: must be a number" in result.output


def test_a_broken_calibration_is_refused_with_its_field(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"h100-sxm": {"efficiencies": {"overlap": 2}, "bases": {}}}')
    result = _predict(tmp_path, f"h100_sxm,{LLAMA},1,decode,8,100", more=("--calibration", tmp_path / "broken.json"))
    assert result.exit_code == 1
    assert "broken.json: efficiencies: missing or unknown:" in result.output


def test_a_model_may_be_its_config_json_or_the_folder_of_it(tmp_path: Path) -> None:
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
    (tmp_path / "config.json").write_text(json.dumps(llama))
    models = (LLAMA, tmp_path / "config.json", tmp_path)
    assert _predict(tmp_path, *(f"h100_sxm,{model},1,decode,64,2048" for model in models)).exit_code == 0
    assert len({row["predicted_ms"] for row in _written(tmp_path)}) == 1


# --- step logs ---

TRUE = Roofline(
    find_shape("Qwen/Qwen3-8B"),
    find_gpu("h100-sxm"),
    calibrated=replace(
        efficiencies_for(find_gpu("h100-sxm")),
        efficiencies=efficiencies_for(find_gpu("h100-sxm")).efficiencies.with_values(
            {"linear_compute": 0.6, "linear_bandwidth": 0.7}
        ),
    ),
)


def _log(folder: Path, *entries: StepLogEntry, gpu: str = "h100-sxm") -> Path:
    head = StepLogHead(worker="w", role=Role.UNIFIED, model="Qwen/Qwen3-8B", gpu=gpu)
    path = folder / "steps.jsonl"
    path.write_text(head_line(head) + "".join(map(entry_line, entries)))
    return path


def _decode(rows: int, context_tokens: int) -> StepLogEntry:
    batch = StepBatch.decode(rows, rows * context_tokens)
    return StepLogEntry(
        kind=StepKind.DECODE,
        started_at_seconds=0.0,
        seconds=TRUE.step_seconds(batch),
        decode_rows=rows,
        decode_context_tokens=rows * context_tokens,
    )


def _mixed(rows: int, context_tokens: int, chunk_tokens: int) -> StepLogEntry:
    decoding = _decode(rows, context_tokens)
    return replace(
        decoding,
        kind=StepKind.MIXED,
        prefill_rows=1,
        prefill_tokens=chunk_tokens,
        prefill_pairs=pairs(chunk_tokens, 0),
        seconds=TRUE.step_seconds(decoding.batch.with_chunks(chunk_tokens)),
    )


STEPS = [_decode(rows, context) for rows in (1, 8, 64) for context in (200, 2000)] + [
    _mixed(rows, 500, chunk) for rows in (2, 30) for chunk in (128, 512, 2048, 4096)
]


def test_a_step_log_tells_what_the_engine_does(tmp_path: Path) -> None:
    log, found = _log(tmp_path, *STEPS, replace(_decode(1, 1), kind=StepKind.SPLIT, seconds=9.0)), tmp_path / "fit.json"
    names = ("--parameter", "linear_compute", "--parameter", "linear_bandwidth")
    result = _run("calibrate", "--steps", log, "--out", found, *names)
    assert result.exit_code == 0, result.output
    document = json.loads(found.read_text())["h100-sxm"]
    assert document["efficiencies"]["linear_compute"] == pytest.approx(0.6, rel=0.05)
    assert document["efficiencies"]["linear_bandwidth"] == pytest.approx(0.7, rel=0.05)
    assert document["bases"]["mixed"] == "measured"
    assert from_file(json.loads(found.read_text()), find_gpu("h100")).efficiencies.linear_compute < 0.65


@pytest.mark.parametrize(
    ("steps", "gpu", "options", "message"),
    [
        (STEPS[:6], "h100-sxm", (), "can't identify .*attention_compute"),
        (STEPS, "", (), "gpu: the log doesn't say which; give --gpu"),
        (STEPS, "", ("--gpu", "v100"), "unknown GPU 'v100'"),
        (STEPS, "h100-sxm", ("--model", "gpt-2"), "unknown model 'gpt-2'"),
        ([], "h100-sxm", (), "no prefill, decode or mixed step"),
    ],
)
def test_a_log_that_tells_too_little_is_refused(
    tmp_path: Path, steps: list[StepLogEntry], gpu: str, options: tuple[str, ...], message: str
) -> None:
    found = tmp_path / "fit.json"
    result = _run("calibrate", "--steps", _log(tmp_path, *steps, gpu=gpu), "--out", found, *options)
    assert result.exit_code == 1
    assert re.search(message, result.output)
    assert not found.exists()


def test_either_a_table_or_logs(tmp_path: Path) -> None:
    assert _run("calibrate").exit_code == 2
    log = _log(tmp_path, *STEPS)
    assert _run("calibrate", "--csv", log, "--steps", log).exit_code == 2
