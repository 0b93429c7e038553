"""The image, the composition and the unit say what the program understands; none of them is started here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from toonstream.commands.serve import _parser, _server_settings
from toonstream.server.settings import ServerSettings, read_ice_servers

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK"}
INSTRUCTIONS |= {"STOPSIGNAL", "ENTRYPOINT", "CMD"}
TOKEN = "a token of some length"


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest) in order, with continued lines put together."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def serve(words: list[str], monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
    """What `toonstream serve` makes of these words."""
    monkeypatch.setenv("TOONSTREAM_TOKEN", TOKEN)
    return _server_settings(_parser().parse_args(words))


def test_the_image_is_made_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = dockerfile()
    assert {name for name, _ in steps} <= INSTRUCTIONS
    stages = {
        match[1] for name, rest in steps if name == "FROM" and (match := re.search(r" AS (\w+)$", rest))
    }
    assert stages == {"cpu", "cuda"}
    assert ("FROM", "${FLAVOUR:-cpu}") in steps  # buildah and podman do not fill in the default above it
    copied = {word for name, rest in steps if name == "COPY" for word in rest.split()[:-1]}
    assert all((ROOT / word).exists() for word in copied)
    linked = {path.resolve().name for path in (ROOT / "src" / "toonstream").iterdir() if path.is_symlink()}
    assert linked <= copied
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not copied & {*ignored}
    kept = steps.index(("VOLUME", "/home/toon/.cache/toonstream"))
    assert steps.index(("USER", "toon")) < steps.index(("RUN", f"mkdir -p {steps[kept][1]}")) < kept
    started = [yaml.safe_load(rest) for name, rest in steps if name in ("ENTRYPOINT", "CMD")]
    assert started[0] == ["toonstream", "serve"]
    settings = serve(started[1], monkeypatch)
    assert ("EXPOSE", f"{settings.port}/tcp") in steps
    (health,) = [rest for name, rest in steps if name == "HEALTHCHECK"]
    program = yaml.safe_load(health.partition("CMD ")[2])[2]
    assert f"127.0.0.1:{settings.port}/readyz" in program
    compile(program, "HEALTHCHECK", "exec")


def test_the_composition_says_what_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    ours, turn = services["toonstream"], services["turn"]
    assert (ROOT / "deploy" / ours["build"]["context"] / "Dockerfile").is_file()
    words = [
        str(ROOT / "deploy" / "ice.example.json").join(word.split("/etc/toonstream/ice.json"))
        for word in ours["command"]
    ]
    settings = serve(words, monkeypatch)
    assert [server.url.partition(":")[0] for server in settings.ice_servers] == ["stun", "turn"]
    assert ours["ports"] == [f"8443:{settings.port}"]
    mounted = {volume.split(":")[1] for volume in ours["volumes"]}
    assert {"/tls", "/etc/toonstream/ice.json"} <= mounted
    compile(ours["healthcheck"]["test"][3], "healthcheck", "exec")
    assert {server.username for server in read_ice_servers(ROOT / "deploy" / "ice.example.json")} == {
        None,
        "toon",
    }
    turnserver = shutil.which("turnserver")
    if turnserver is not None:
        known = subprocess.run([turnserver, "--help"], capture_output=True, text=True, check=False)
        for word in turn["command"]:
            assert f"{word.split('=')[0]}" in known.stdout + known.stderr


def test_the_unit_says_what_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "toonstream.service").read_text()
    match = re.search(r"^ExecStart=(.*)$", text.replace("\\\n", " "), re.MULTILINE)
    assert match
    program, command, *words = shlex.split(match[1])
    assert (program, command) == ("/opt/toonstream/bin/toonstream", "serve")
    settings = serve(words, monkeypatch)
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert stop
    assert settings.grace < int(stop[1])
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("no systemd-analyze: the unit is not read by systemd itself")
    unit = tmp_path / "toonstream.service"
    unit.write_text(text.replace(program, sys.executable))
    words = [verify, "verify", "--man=no", str(unit)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    assert (done.returncode, done.stderr) == (0, "")
