"""From a report to the documentation: every row names its peer, and nothing is typed by hand."""

import pytest

from duet_dev.demo.publish import page, rows

REPORT = {
    "settings": {
        "trace": "bundled sample",
        "seed": 7,
        "command": "make demo",
        "machine": "2 cores",
        "spec": {"slo": {"ttftMilliseconds": 2000, "itlMilliseconds": 100}},
    },
    "stages_seconds": {"local cluster": 5.0, "load": 214.6},
    "verdict": "passed",
    "criteria": [{"name": "GPU-hours", "text": "0.265 billed"}],
    "figures": {"attainment": 0.9823, "failed": 0, "ttft_p95_seconds": 1.039, "itl_p95_seconds": 0.051},
    "planned_requests": 848,
    "attainment_goal": 0.95,
    "gpu_hours": 0.2654,
    "peak_held_gpu_hours": 0.4171,
    "loop_lag_p99_seconds": {"gateway": 0.0051},
    "scale_actions": [{"message": "prefill 1→2: because"}],
}


def test_each_figure_stands_beside_its_peer() -> None:
    found = {row["figure"]: row for row in rows(REPORT)}
    hours = found["GPU-hours, bundled sample"]
    assert hours["value"] == 0.265
    assert hours["peer_value"] == 0.417
    assert hours["ratio"] == pytest.approx(0.635, abs=0.001)
    assert found["failed requests, bundled sample"]["ratio"] == 0
    assert found["gateway loop lag P99, bundled sample"]["value"] == 5.1
    assert all(row["command"] == "make demo" and row["seed"] == 7 for row in found.values())


def test_the_page_shows_rows_criteria_and_decisions() -> None:
    text = page([REPORT])
    assert "| GPU-hours, bundled sample | 0.265 | slice-hours | peak held all the time | 0.417 | 0.635 |" in text
    assert "- GPU-hours: 0.265 billed" in text
    assert "> prefill 1→2: because" in text
    assert "`make demo`, seed 7, 220 s before the report, 2 cores" in text


def test_real_engines_have_a_page_and_a_limit_of_their_own() -> None:
    report = REPORT | {"settings": {**REPORT["settings"], "engine": "sglang"}}  # type: ignore[dict-item]
    text = page([report], engine="sglang")
    assert text.startswith("# Demo with real engines")
    assert "| gateway loop lag P99, bundled sample | 5.1 | ms | limit | 200 | 0.025 |" in text
