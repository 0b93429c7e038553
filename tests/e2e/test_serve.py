"""`toonstream serve` as an operator runs it."""

import asyncio
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from certificates import write_certificate
from stand_in import running

from toonstream.cli import main
from toonstream.commands import serve
from toonstream.server.settings import ServerSettings

TOKEN = "a token of some length"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--host", "0.0.0.0"], "set a token"),
        (["--host", "0.0.0.0", "--token", "short"], "too short"),
        (["--port", "http"], "invalid int value"),
        (["--latency", "soon"], "400ms"),
        (["--bitrate", "lots"], "2.5M"),
        (["--ice-server", "example.org"], "stun:HOST:PORT"),
        (["--ice-servers", "none.json"], "No such file"),
        (["--tls-cert", "cert.pem"], "--tls-key"),
        (["--tls-cert", "cert.pem", "--tls-key", "key.pem"], "for TLS"),
        (["--style", "baroque", "--port", "0"], "no style 'baroque'"),
        (["--model", "nowhere", "--port", "0"], "nowhere"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_what_makes_no_sense_is_said_in_one_line(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"toonstream: [^\n]+\n", captured.err)
    assert reason in captured.err


def test_the_help_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 45
    assert max(map(len, lines)) <= 80


def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str], unused_tcp_port: int) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", unused_tcp_port))
        taken.listen()
        assert main(["serve", "--port", str(unused_tcp_port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {unused_tcp_port}" in capsys.readouterr().err


def test_an_import_that_fails_is_told_and_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine_name(engine: str) -> str:
        raise ImportError("no such library")

    monkeypatch.setattr("toonstream.engines.select.engine_name", engine_name)
    with pytest.raises(ImportError, match="no such library"):
        serve.run(["--port", "0", "--quiet"])


def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    words = ["--port", "0", "--engine", "onnxruntime", "--size", "64", "--token", TOKEN, "--grace", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "toonstream", "serve", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.fullmatch(r"toonstream: open (http://127\.0\.0\.1:\d+)/ \(Ctrl-C ends it\)\n", line)
        assert match, line
        assert asyncio.run(_styles(match[1])) == ["hosoda", "shinkai", "hayao", "ink", "flat"]
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0
    assert rest == "toonstream: saying goodbye, within 2 s\n"


STUCK = """
import sys, threading
import toonstream.export.assemble as assemble
from toonstream.cli import main

def load_model(*words, say, **named):
    say("stuck")
    threading.Event().wait()

assemble.load_model = load_model
sys.exit(main(["serve", "--port", "0", "--grace", "1"]))
"""


def test_whoever_is_told_to_end_does_not_wait_for_a_model_that_is_being_loaded() -> None:
    words = [sys.executable, "-c", STUCK]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        try:
            _, rest = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, rest) == (0, "toonstream: saying goodbye, within 1 s\n")


async def _styles(url: str) -> list[str]:
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        assert (await http.get("/readyz")).status == 200
        catalogue = await (await http.get("/catalogue")).json()
        styles: list[str] = catalogue["styles"]
        return styles


async def test_over_tls(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    async with running(ServerSettings(port=0, tls_cert=certificate, tls_key=key)) as service:
        assert service.server.url == f"https://127.0.0.1:{service.server.port}/"
        trust = ssl.create_default_context(cafile=str(certificate))
        async with aiohttp.ClientSession() as http:
            response = await http.get(f"https://localhost:{service.server.port}/healthz", ssl=trust)
            assert response.status == 200
