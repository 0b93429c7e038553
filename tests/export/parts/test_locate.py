"""Where files of parts are found: the hub is a small server here, that answers as the real one does."""

import errno
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from toonstream.errors import ModelError
from toonstream.export.parts.locate import Locator
from toonstream.export.parts.part import Part

REVISION = "a" * 40
VAE = Part(source="someone/vae", subfolder="vae")


class Hub(ThreadingHTTPServer):
    """Has `someone/vae` with some files, `someone/gated`, and nothing else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {"vae/config.json": b"{}", "vae/weights.bin": b"pickled"}
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        repository, _, name = self.path.removeprefix("/").partition("/resolve/main/")
        self._answer(self.server.files.get(name, b"") if repository == VAE.source else b"")

    def _answer(self, body: bytes) -> None:
        repository, _, name = self.path.removeprefix("/").partition("/resolve/main/")
        content = self.server.files.get(name)
        if name:
            self.server.asked.append(f"{self.command} {name}")
        if repository == VAE.source and content is not None:
            self.send_response(200)
            self.send_header("ETag", f'"{name.replace("/", "-")}"')
            self.send_header("Content-Length", str(len(content)))
        else:
            gated = repository == "someone/gated"
            self.send_response(403 if gated else 404)
            codes = {VAE.source: "EntryNotFound", "someone/gated": "GatedRepo"}
            self.send_header("X-Error-Code", codes.get(repository, "RepoNotFound"))
            self.send_header("Content-Length", "0")
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing."""


def at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub be at a port of this machine."""
    endpoint = f"http://127.0.0.1:{port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub's own retries
    with Hub() as server:
        at(server.server_port, monkeypatch)
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_is_nowhere_is_downloaded_once(hub: Hub) -> None:
    locator = Locator()
    found = locator.find(VAE, "config.fp16.json", "config.json")
    assert found is not None
    assert found.path.read_bytes() == b"{}"
    assert found.identity == f"someone/vae@{REVISION}/vae/config.json"
    asked = list(hub.asked)
    assert asked[0] == "HEAD vae/config.fp16.json"
    assert asked[-1] == "GET vae/config.json"
    assert Locator().find(VAE, "config.fp16.json", "config.json") == found
    assert hub.asked == asked
    assert not locator.missing


def test_what_the_hub_lacks_is_missing(hub: Hub) -> None:
    locator = Locator()
    assert locator.find(VAE, "a.json", "b.json") is None
    assert (locator.missing, locator.unreachable) == (["someone/vae/vae/a.json (or b.json)"], False)
    assert locator.find(VAE, "c.json", required=False) is None
    assert len(locator.missing) == 1


def test_pickled_files_are_downloaded_only_with_leave(hub: Hub) -> None:
    locator = Locator()
    assert locator.find(VAE, "weights.bin") is None
    assert "(pickled, and so not downloaded without --allow-pickle)" in locator.missing[0]
    assert not hub.asked
    allowed = Locator(allow_pickle=True).find(VAE, "weights.safetensors", "weights.bin")
    assert allowed is not None
    assert allowed.path.read_bytes() == b"pickled"
    here = Locator().find(VAE, "weights.safetensors", "weights.bin")
    assert here is not None
    assert (here.path, here.allow_pickle) == (allowed.path, False)


def test_a_repository_that_is_not_there_or_not_open_is_said(hub: Hub) -> None:
    with pytest.raises(ModelError, match="the hub has no someone/else"):
        Locator().find(Part(source="someone/else"), "config.json")
    with pytest.raises(ModelError, match="someone/gated is for those who accept its terms"):
        Locator().find(Part(source="someone/gated"), "config.json")


def test_nothing_is_downloaded_where_that_is_not_wanted(hub: Hub) -> None:
    assert Locator(download=False).find(VAE, "config.json") is None
    assert not hub.asked


def test_a_hub_out_of_reach_is_asked_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    at(9, monkeypatch)  # where nobody listens
    locator = Locator()
    assert locator.find(VAE, "config.json") is None
    assert locator.unreachable
    at(hub.server_port, monkeypatch)
    assert locator.find(VAE, "other.json") is None
    assert not hub.asked
    assert locator.missing == ["someone/vae/vae/config.json", "someone/vae/vae/other.json"]


def test_a_full_disk_is_no_hub_out_of_reach(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(ModelError, match=r"no room for someone/vae/vae/config\.json: .*HF_HOME"):
        Locator().find(VAE, "config.json")


def test_files_put_by_hand_come_first(hub: Hub, tmp_path: Path) -> None:
    assert Locator().find(VAE, "config.json") is not None
    by_hand = tmp_path / "cache" / "parts" / "someone" / "vae" / "vae" / "config.json"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_text("{}")
    found = Locator().find(VAE, "config.json")
    assert found is not None
    assert found.path == by_hand


def test_a_local_part_is_a_folder_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(b"x")
    for part in (
        Part(source=str(tmp_path)),
        Part(source=str(tmp_path / "lora.safetensors")),
        Part(source=str(tmp_path.parent), subfolder=tmp_path.name),
    ):
        found = Locator().find(part, "lora.safetensors")
        assert found is not None
        assert found.path == tmp_path / "lora.safetensors"
    locator = Locator()
    assert locator.find(Part(source=str(tmp_path)), "other.safetensors", "other.bin") is None
    assert locator.missing == [str(tmp_path / "other.safetensors")]
