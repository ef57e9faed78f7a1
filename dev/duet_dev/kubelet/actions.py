"""Carries out what probes and lifecycle hooks ask for: an HTTP request, a TCP connection, a command, a pause."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence

from duet_dev.kubeapi import JsonObject

Execute = Callable[[Sequence[str], float], Awaitable[int]]

_UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_UNVERIFIED.check_hostname = False
_UNVERIFIED.verify_mode = ssl.CERT_NONE


class ActionFailed(Exception):
    """The action was carried out and did not succeed, or could not be carried out in time."""


def port_number(port: int | str, container: JsonObject) -> int:
    if isinstance(port, int):
        return port
    for declared in container.get("ports", []):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    raise ActionFailed(f"container {container['name']} has no port named {port!r}")


async def perform(
    action: JsonObject, *, container: JsonObject, address: str, execute: Execute, timeout_seconds: float
) -> None:
    """Return when the action succeeded; ActionFailed says why it did not."""
    try:
        async with asyncio.timeout(timeout_seconds):
            if request := action.get("httpGet"):
                await _get(request, container, address)
            elif target := action.get("tcpSocket"):
                port = port_number(target["port"], container)
                _, writer = await asyncio.open_connection(target.get("host") or address, port)
                writer.close()
            elif command := action.get("exec"):
                await _run(command["command"], execute, timeout_seconds)
            elif pause := action.get("sleep"):
                await asyncio.sleep(pause["seconds"])
            else:
                raise ActionFailed(f"this kubelet has no such action: {', '.join(action)}")
    except TimeoutError:
        raise ActionFailed(f"no success within {timeout_seconds:g} s") from None
    except OSError as error:
        raise ActionFailed(str(error)) from None


async def _run(command: Sequence[str], execute: Execute, timeout_seconds: float) -> None:
    code = await execute(command, timeout_seconds)
    if code != 0:
        raise ActionFailed(f"command {' '.join(command)!r} exited with {code}")


async def _get(request: JsonObject, container: JsonObject, address: str) -> None:
    """One request of the cheapest kind: a probe each second for each pod must cost next to nothing."""
    host, port = request.get("host") or address, port_number(request["port"], container)
    headers = {"Host": f"{host}:{port}", "User-Agent": "kube-probe/1.36", "Accept": "*/*", "Connection": "close"}
    headers |= {header["name"]: header["value"] for header in request.get("httpHeaders", [])}
    path = request.get("path") or "/"
    lines = [f"GET {path if path.startswith('/') else '/' + path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    secure = _UNVERIFIED if request.get("scheme", "HTTP").upper() == "HTTPS" else None
    reader, writer = await asyncio.open_connection(host, port, ssl=secure)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        status = (await reader.readline()).split()
    finally:
        writer.close()
    if len(status) < 2 or not status[1].isdigit():
        raise ActionFailed("the answer was not HTTP")
    if not 200 <= int(status[1]) < 400:
        raise ActionFailed(f"HTTP probe failed with statuscode: {int(status[1])}")
