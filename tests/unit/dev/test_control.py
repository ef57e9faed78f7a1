"""Requests to a running supervisor: answers, refusals, sockets that travel along."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from duet_dev import control
from duet_dev.errors import DevError


async def answer(request: dict[str, Any], sockets: list[socket.socket]) -> control.Answer:
    if request["do"] == "refuse":
        raise DevError("not today")
    return {"got": request, "ports": [given.getsockname()[1] for given in sockets]}


async def ask(path: Path, document: dict[str, Any], *sockets: socket.socket) -> control.Answer:
    return await asyncio.to_thread(control.request, path, document, sockets)


async def test_an_answer_comes_back_and_sockets_go_along(tmp_path: Path) -> None:
    server = control.ControlServer(tmp_path / "control.sock", answer)
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        reply = await ask(tmp_path / "control.sock", {"do": "x"}, given)
        assert reply == {"got": {"do": "x"}, "ports": [given.getsockname()[1]]}
    server.close()


@pytest.mark.parametrize(("document", "reason"), [({"do": "refuse"}, "not today"), ({}, "'do'")])
async def test_a_refusal_is_an_error_and_the_server_lives_on(
    tmp_path: Path, document: dict[str, Any], reason: str
) -> None:
    server = control.ControlServer(tmp_path / "control.sock", answer)
    with pytest.raises(DevError, match=reason):
        await ask(tmp_path / "control.sock", document)
    assert (await ask(tmp_path / "control.sock", {"do": "x"}))["ports"] == []
    server.close()


async def test_a_long_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    server = control.ControlServer(folder / "control.sock", answer)
    assert (await ask(folder / "control.sock", {"do": "x"}))["got"] == {"do": "x"}
    server.close()


async def test_the_servers_process_is_known(tmp_path: Path) -> None:
    server = control.ControlServer(tmp_path / "control.sock", answer)
    assert control.server_pid(tmp_path / "control.sock") == os.getpid()
    server.close()


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DevError, match="no cluster runs in"):
        control.request(tmp_path / "control.sock", {"do": "status"})
