"""Several gateway processes on one port: they share the work, and each speaks for all."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.fleet import Fleet, GatewayProcess, all_usable, ask, completion, demand, eventually, fleet


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as started:
        yield started


async def all_up(gateway: GatewayProcess, workers: int) -> None:
    """All processes answer, and hear so many workers."""
    async with aiohttp.ClientSession() as session:

        async def ready() -> bool:
            async with session.get(gateway.admin + "/readyz") as response:
                return response.status == 200

        await eventually(ready, "all processes to be up")
        await all_usable(session, gateway, workers)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_two_processes_speak_for_each_other_and_end_together(processes: Fleet) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode")]
    gateway = processes.gateway(engines, "--processes", "2")
    assert len(children(gateway.popen.pid)) == 2

    async def documents(count: int) -> list[dict[str, Any]]:
        """Each asked on a connection of its own, which either process may take."""
        found = []
        for _ in range(count):
            async with aiohttp.ClientSession() as session:
                found.append(await demand(session, gateway))
        return found

    await all_up(gateway, 2)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        answers = await asyncio.gather(*(ask(session, gateway.url, completion(3)) for _ in range(24)))
        assert all(answer.whole for answer in answers)
        seen = await documents(8)
        assert {document["instance_id"] for document in seen} == {seen[0]["instance_id"]}
        sequences = [document["sequence"] for document in seen]
        assert sequences == sorted(set(sequences)), "it only grows, whoever is asked"
        assert {document["classes"][0]["completed_total"] for document in seen} == {24}
        decode = next(worker for worker in seen[0]["workers"] if worker["role"] == "decode")
        assert len(decode["state"]["accepted"]) == 2, "both processes have sent something"
        plan = {"generation": 3, "lease_seconds": 30, "dispatch_share": 0.5}
        async with session.put(gateway.admin + "/duet/plan", json=plan) as response:
            assert response.status == 200
        for _ in range(6):
            async with session.get(gateway.admin + "/duet/plan") as response:
                assert (await response.json())["generation"] == 3
        gateway.terminate()

        async def unready() -> bool:
            async with session.get(gateway.admin + "/readyz") as response:
                return response.status == 503

        await eventually(unready, "the pod to be unready")
    assert await asyncio.to_thread(gateway.popen.wait, 20) == 0


async def test_when_one_process_dies_the_whole_ends_and_says_so(processes: Fleet) -> None:
    gateway = processes.gateway([processes.engine("decode")], "--processes", "2")
    await all_up(gateway, 1)

    os.kill(children(gateway.popen.pid)[0], signal.SIGKILL)
    assert await asyncio.to_thread(gateway.popen.wait, 30) == 1


async def test_when_the_first_is_killed_nobody_is_left(processes: Fleet) -> None:
    gateway = processes.gateway([processes.engine("decode")], "--processes", "2")
    await all_up(gateway, 1)
    members = children(gateway.popen.pid)

    gateway.popen.kill()

    async def gone() -> bool:
        return not any(map(alive, members))

    await eventually(gone, "the others to have ended")
