"""Thousands of stored objects within seconds: copies in etcd itself, as out of a backup, without a request for each.

Invariant: a copy differs from its original in name and uid alone, which take places of equal length, so that the stored
bytes need not be understood.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import aiohttp

MOST_PUTS = 128
"""Of one transaction."""


def client_url(folder: Path) -> str:
    """Where the etcd listens whose data lie under this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # It has ended meanwhile.
        if f"--data-dir={folder}/" in command and (found := re.search(r"--listen-client-urls=([^\0]+)", command)):
            return found[1]
    raise AssertionError(f"no etcd keeps its data under {folder}")


async def copies(folder: Path, prefix: str, *, name: str, uid: str, count: int) -> None:
    """`count` copies of the object at `prefix/name`; its name must end with the digits that number them."""
    digits = re.search(r"\d+$", name)
    assert digits is not None and count < 10 ** len(digits[0]), name
    async with aiohttp.ClientSession(client_url(folder), raise_for_status=True) as session:
        async with session.post("/v3/kv/range", json={"key": _text(f"{prefix}/{name}".encode())}) as response:
            (found,) = (await response.json())["kvs"]
        original = base64.b64decode(found["value"])

        def put(number: int) -> dict[str, Any]:
            new_name = f"{name[: digits.start()]}{number:0{len(digits[0])}}"
            new_uid = f"{uid[:-6]}{number:06}"
            value = original.replace(name.encode(), new_name.encode()).replace(uid.encode(), new_uid.encode())
            return {"requestPut": {"key": _text(f"{prefix}/{new_name}".encode()), "value": _text(value)}}

        for first in range(1, count + 1, MOST_PUTS):
            puts = [put(number) for number in range(first, min(first + MOST_PUTS, count + 1))]
            async with session.post("/v3/kv/txn", json={"success": puts}) as response:
                assert (await response.json())["succeeded"]


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
