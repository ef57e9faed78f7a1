"""What `duet-engine` starts SGLang with, and what it refuses before."""

from __future__ import annotations

import json
import logging

import pytest

from duet_engine.launch import main
from duet_engine.plugin.command_line import DECIDED, REFUSED, command_line
from duet_engine.plugin.json_logs import JsonLines
from duet_engine.plugin.starting import prepare

DECODE = {
    "DUET_ROLE": "decode",
    "DUET_MODEL_ID": "Qwen/Qwen3-8B",
    "DUET_MODEL_PATH": "/models/qwen",
    "DUET_SERVED_NAME": "qwen",
    "DUET_TENSOR_PARALLEL_SIZE": "2",
    "DUET_TRANSFER_BACKEND": "nixl",
    "POD_IP": "10.1.2.3",
}


def options(arguments: tuple[str, ...]) -> dict[str, str]:
    """Each option with its value, empty for a flag."""
    found: dict[str, str] = {}
    for argument in arguments:
        if argument.startswith("--"):
            found[argument] = ""
        else:
            found[list(found)[-1]] = argument
    return found


def test_a_decode_worker_gets_what_its_pod_says() -> None:
    found = options(command_line(DECODE, ()))
    assert found == {
        "--model-path": "/models/qwen",
        "--host": "10.1.2.3",
        "--port": "30000",
        "--enable-metrics": "",
        "--served-model-name": "qwen",
        "--tensor-parallel-size": "2",
        "--disaggregation-mode": "decode",
        "--disaggregation-transfer-backend": "nixl",
        "--disaggregation-bootstrap-port": "8998",
        "--enable-mixed-chunk": "",
        "--disaggregation-decode-enable-radix-cache": "",
        # As an ordinary server on a GPU has it, within the memory that SGLang reserves for a decode-mode one.
        "--chunked-prefill-size": "2048",
        "--cuda-graph-backend-prefill": "breakable",
    }


def test_a_unified_worker_is_an_ordinary_server() -> None:
    found = options(command_line({"DUET_MODEL_ID": "Qwen/Qwen3-8B"}, ()))
    assert not [option for option in found if option.startswith("--disaggregation")]


def test_without_a_gpu_each_role_gets_what_it_needs_there() -> None:
    cpu = {**DECODE, "SGLANG_USE_CPU_ENGINE": "1"}
    assert options(command_line(cpu, ()))["--disaggregation-decode-retraction-backup"] == "none"
    assert "--disable-overlap-schedule" in command_line({**cpu, "DUET_ROLE": "prefill"}, ())


def test_the_users_own_choice_replaces_ours() -> None:
    cpu = {**DECODE, "SGLANG_USE_CPU_ENGINE": "1"}
    arguments = command_line(cpu, ("--attention-backend", "intel_amx", "--mem-fraction-static", "0.5"))
    assert arguments.count("--attention-backend") == 1
    assert options(arguments)["--attention-backend"] == "intel_amx"
    assert "torch_native" not in arguments


@pytest.mark.parametrize("option", sorted(DECIDED))
def test_what_the_object_decides_cant_be_an_argument(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is decided by .*: remove it from spec.engine.args"):
        command_line(DECODE, (f"{option}=x",))


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_what_duet_cant_do_is_refused_with_the_fix(option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: .*; "):
        command_line(DECODE, (option, "2"))


@pytest.mark.parametrize("hidden", ["--tokenizer_worker_num", "--tokenizer-work", "--data-par"])
def test_other_spellings_that_sglang_takes_hide_nothing(hidden: str) -> None:
    with pytest.raises(ValueError, match=f"^{hidden.replace('_', '-')}: "):
        command_line(DECODE, (hidden, "2"))


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("DUET_ROLE", "encoder", "DUET_ROLE: must be one of prefill, decode, unified"),
        ("DUET_ITL_MILLISECONDS", "fast", "DUET_ITL_MILLISECONDS: must be a positive number"),
        ("SGLANG_RUST_SERVER", "1", "SGLANG_RUST_SERVER: .*remove it"),
        ("SGLANG_PLUGINS", "other", "add `duet` to it"),
    ],
)
def test_a_bad_variable_is_named(name: str, value: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        command_line({**DECODE, name: value}, ())


def test_pinned_memory_needs_a_gpu() -> None:
    given = ("--disaggregation-decode-retraction-backup", "host_pool")
    assert command_line(DECODE, given)
    with pytest.raises(ValueError, match="take `none` without one"):
        command_line({**DECODE, "SGLANG_USE_CPU_ENGINE": "1"}, given)


def test_a_prefill_worker_that_may_become_a_decode_worker_keeps_its_prefix_cache_right() -> None:
    prefill = {**DECODE, "DUET_ROLE": "prefill"}
    radix = "--disaggregation-decode-enable-radix-cache"
    assert radix not in command_line(prefill, ())
    assert radix in command_line(prefill, ("--enable-pd-role-switch",))
    assert radix not in command_line(prefill, ("--enable-pd-role-switch", "--disable-radix-cache"))


def test_where_sglang_is_missing_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUET_MODEL_ID", "Qwen/Qwen3-8B")
    monkeypatch.setenv("DUET_ROLE", "decode")
    with pytest.raises(SystemExit) as ended:
        main(["--mem-fraction-static", "0.9"])
    assert ended.value.code == 2
    assert "SGLang isn't installed here; install sglang==0.5.23" in capsys.readouterr().err


def test_another_sglang_is_refused_with_the_supported_range(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUET_MODEL_ID", "Qwen/Qwen3-8B")
    monkeypatch.setattr("duet_engine.plugin.starting.version", lambda _: "0.5.24")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "SGLang 0.5.24 isn't supported by this version of Duet; supported: 0.5.23" in capsys.readouterr().err


def test_a_decode_worker_is_tried_again_soon_after_a_broken_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless somebody has chosen SGLang's probes otherwise, in which case theirs must fit each other."""
    monkeypatch.setattr("duet_engine.plugin.starting.version", lambda _: "0.5.23")
    given = {"DUET_MODEL_ID": "m", "DUET_LOG_FORMAT": "text", "SGLANG_USE_CPU_ENGINE": "1"}
    interval, longest = "SGLANG_FAILED_SESSION_PROBE_INTERVAL_S", "SGLANG_FAILED_SESSION_PROBE_MAX_INTERVAL_S"
    environment = prepare(given, [])[1]
    assert 0 < float(environment[interval]) < 30 and float(environment[interval]) <= float(environment[longest])
    assert interval not in prepare({**given, longest: "1"}, [])[1]


def test_a_log_line_is_one_object() -> None:
    record = logging.LogRecord("sglang", logging.WARNING, __file__, 1, "two\nlines %s", ("é",), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines é"
    assert json.loads(line)["level"] == "warning"
