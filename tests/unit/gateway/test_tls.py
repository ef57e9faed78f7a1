"""HTTPS: served with what the Secret holds, and with what it holds later."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from duet_engine.gateway.settings import Limits
from duet_engine.gateway.tls import CERTIFICATE, KEY, ServerTls
from duet_engine.gateway.wire.listener import Listener


def certify(folder: Path, name: str) -> None:
    """A self-signed pair, put where a kubelet would."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-days",
        "1",
        "-subj",
        f"/CN={name}",
        "-keyout",
        folder / f"{KEY}.new",
        "-out",
        folder / f"{CERTIFICATE}.new",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for file in (KEY, CERTIFICATE):
        (folder / f"{file}.new").rename(folder / file)


async def asked(port: int) -> tuple[bytes, bytes]:
    """The certificate that a client is shown, and the answer that it gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown, answer


async def test_a_replaced_certificate_serves_the_next_handshake(tmp_path: Path) -> None:
    certify(tmp_path, "first")
    tls = ServerTls(tmp_path)
    listener = Listener(
        lambda exchange: exchange.respond(200, b"{}"), check=lambda _: None, limits=Limits(), draining=lambda: False
    )
    port = await listener.start("127.0.0.1", 0, tls=tls.context)
    first, answer = await asked(port)
    assert answer.startswith(b"HTTP/1.1 200 OK") and answer.endswith(b"{}")
    certify(tmp_path, "second")
    tls.look_again()
    second, _ = await asked(port)
    assert second != first
    (tmp_path / CERTIFICATE).write_text("broken")
    tls.look_again()
    assert (await asked(port))[0] == second, "what was read last stays in force"
    listener.close()
    await listener.drained(0.0)


def test_without_a_certificate_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=CERTIFICATE):
        ServerTls(tmp_path)
