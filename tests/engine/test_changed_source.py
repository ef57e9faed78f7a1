"""The plugin in an SGLang that isn't the one it was written for (`make engine-full`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.sglang_changes import with_changes
from tests.support.sglang_servers import Wanted, ask, get, running_server

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_changed_sglang_serves_and_stays_unready_with_the_reason(engine_logs: Path) -> None:
    """SGLang itself says that it's ready: without Duet's own probe nobody would notice."""
    changed = with_changes(engine_logs / "changed", "another_source()")
    with running_server(Wanted("unified", environment=changed), logs=engine_logs, name="broken") as broken:
        assert get(broken, "/ready")[0] == 200
        status, answer = ask(broken, "GET", "/duet/ready")
        assert status == 503
        assert "scheduler 0: sglang.srt.managers.scheduler.Scheduler.ingest_requests" in answer["reason"]
        assert "its source is another" in answer["reason"]
        assert get(broken, "/duet/live")[0] == 200
