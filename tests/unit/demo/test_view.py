"""The live view: everything that was seen is on it, and nothing that wasn't."""

import io
from pathlib import Path

from rich.console import Console

from duet_dev.demo.observations import PoolCounts, Sample
from duet_dev.demo.observer import Observer
from duet_dev.demo.records import Record
from duet_dev.demo.results import Results, UnloadedTtft
from duet_dev.demo.view import View
from duet_dev.kubeapi import Api
from duet_engine.perf import catalog
from duet_engine.protocol import Role
from duet_engine.slo import Objective

KUBECONFIG = """
clusters: [{cluster: {server: "https://127.0.0.1:1", certificate-authority-data: ""}}]
users: [{user: {token: t}}]
"""


def view(tmp_path: Path, *samples: Sample) -> View:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG.replace('""', '"QQ=="'))
    idle = UnloadedTtft(catalog.profile("a100-3g.40gb", "Qwen/Qwen3-8B", role=Role.PREFILL))
    return View(
        observer=Observer(Api(tmp_path / "kubeconfig"), "default", "qwen3-8b", samples=list(samples)),
        results=Results(Objective(ttft_seconds=1.0, itl_seconds=0.05), idle),
        planned_requests=500,
        planned_seconds=200.0,
    )


def rendered(shown: View) -> str:
    console = Console(file=io.StringIO(), width=140)
    with console.capture() as capture:
        console.print(shown.render(75.0))
    return capture.get()


def test_before_anything_was_seen_numbers_are_dashes(tmp_path: Path) -> None:
    text = rendered(view(tmp_path))
    assert "no decision yet" in text
    assert "TTFT P50" in text
    assert "–" in text


def test_pools_progress_and_the_decision_are_shown(tmp_path: Path) -> None:
    seen = Sample(
        time_seconds=1.0,
        prefill=PoolCounts(ready=2, starting=1, draining=1, desired=3),
        decode=PoolCounts(ready=4, desired=4),
        decision="decode 3→4: 41.2k output tok/s expected",
    )
    shown = view(tmp_path, seen)
    shown.results.add(
        Record(
            index=0,
            endpoint="/v1/completions",
            streamed=True,
            sent_at_seconds=1.0,
            duration_seconds=1.0,
            input_tokens=10,
            output_tokens=1,
            ttft_seconds=0.1,
            failure="HTTP 503",
        )
    )
    text = rendered(shown)
    for part in (
        "2 ready  1 starting  1 draining  3 desired",
        seen.decision,
        "1/500 requests",
        "1 failed",
        "1:15 elapsed",
    ):
        assert part in text


def test_the_plain_line_holds_the_same(tmp_path: Path) -> None:
    seen = Sample(
        time_seconds=1.0, prefill=PoolCounts(ready=2, starting=1, desired=3), decode=PoolCounts(ready=4, desired=4)
    )
    line = view(tmp_path, seen).line(75.0)
    assert line.startswith("1:15/3:20  prefill 2/3 +1 starting  decode 4/4")
    assert "TTFT P95 –" in line
    assert line.endswith("attained –  failed 0")
