"""The store of built engines: keys, two processes, killed builds, damage, pruning."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.engines.shapes import Triple
from toonstream.engines.store import EngineKey, EngineStore, StoredEngine, cache_folder, to_prune
from toonstream.errors import EngineError

KEY = EngineKey(
    onnx="a" * 64,
    shapes={"sample": Triple((1, 4), (2, 4), (2, 4)), "text": Triple((1,), (1,), (1,))},
    precision="float16",
    flags=frozenset({"refit", "tf32"}),
    flavour="tensorrt-rtx",
    version="1.7.1",
    compute_capability="8.9",
)

words = st.text("abc", min_size=1, max_size=3)
lengths = st.lists(st.integers(1, 64), min_size=1, max_size=5).map(tuple)
keys = st.builds(
    EngineKey,
    onnx=words,
    weights=st.just("") | words,
    shapes=st.dictionaries(words, st.builds(Triple, lengths, lengths, lengths), max_size=3),
    precision=words,
    flags=st.frozensets(words, max_size=3),
    flavour=words,
    version=words,
    compute_capability=words,
)


@given(keys, keys)
def test_keys_have_one_name_exactly_when_they_are_equal(one: EngineKey, other: EngineKey) -> None:
    assert (one.digest == other.digest) == (one == other)


@given(keys, st.randoms())
def test_order_does_not_matter(key: EngineKey, random: object) -> None:
    names = list(key.shapes)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert replace(key, shapes={name: key.shapes[name] for name in names}).digest == key.digest


@pytest.mark.parametrize("name", [field.name for field in fields(EngineKey)])
def test_every_part_of_a_key_counts(name: str) -> None:
    others = {"shapes": {"sample": KEY.shapes["sample"]}, "flags": frozenset({"refit"})}
    assert replace(KEY, **{name: others.get(name, "other")}).digest != KEY.digest


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def refuse(path: Path) -> None:
    raise AssertionError("nothing is to be built")


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    assert store.find(KEY) is None
    built = store.obtain(KEY, write(b"engine"), label="toy")
    again = store.obtain(KEY, refuse, label="toy")
    assert again.path == built.path
    assert again.path.read_bytes() == b"engine"
    assert (again.label, again.size, again.key["compute_capability"]) == ("toy", 6, "8.9")
    assert store.find(replace(KEY, version="2")) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"enginE"),
        lambda path: path.write_bytes(b"eng"),
        lambda path: path.unlink(),
        lambda path: path.with_name("manifest.json").unlink(),
        lambda path: path.with_name("manifest.json").write_text("{"),
    ],
    ids=["a bit", "the end", "all", "no manifest", "half a manifest"],
)
def test_a_damaged_engine_is_found_said_and_rebuilt(damage: Callable[[Path], None], tmp_path: Path) -> None:
    store, said = EngineStore(tmp_path), []
    damage(store.obtain(KEY, write(b"engine"), label="toy").path)
    rebuilt = store.obtain(KEY, write(b"engine"), label="toy", say=said.append)
    assert rebuilt.intact()
    assert len(said) == 1
    assert "is damaged; building it again" in said[0]
    assert [engine.digest for engine in store.engines()] == [KEY.digest]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise EngineError("refused")

    store = EngineStore(tmp_path)
    with pytest.raises(EngineError, match="refused"):
        store.obtain(KEY, fail, label="toy")
    assert store.find(KEY) is None
    assert not list(tmp_path.rglob("engine"))
    assert store.obtain(KEY, write(b"engine"), label="toy").intact()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EngineError, match=r"file.*TOONSTREAM_CACHE"):
        EngineStore(blocked / "engines").obtain(KEY, refuse, label="toy")


# A process that obtains the engine, says when it has begun to build, and builds on when it is told to.
CHILD = """
import sys
from pathlib import Path
from toonstream.engines.shapes import Triple
from toonstream.engines.store import EngineKey, EngineStore

def build(path):
    path.write_bytes(b"half")
    print("building", flush=True)
    sys.stdin.readline()
    path.write_bytes(b"engine")

def say(line):
    print(line, flush=True)

engine = EngineStore(Path(sys.argv[1])).obtain(eval(sys.argv[2]), build, label="toy", say=say)
print(engine.path.read_bytes().decode(), flush=True)
"""


@contextmanager
def child(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", CHILD, str(folder), repr(KEY)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_processes_one_builds_and_one_waits(tmp_path: Path) -> None:
    with child(tmp_path) as first:
        assert hear(first) == "building"
        with child(tmp_path) as second:
            assert hear(second) == "toy: another process is building it; waiting"
            say(first, "go on")
            assert hear(first) == "engine"
            assert hear(second) == "engine"


def test_a_killed_build_leaves_nothing_that_is_taken_for_an_engine(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    with child(tmp_path) as first:
        assert hear(first) == "building"
        assert list(store.engines()) == []
        assert store.sweep() == 0  # it is being built
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert list(store.engines()) == []
    left = list((tmp_path / ".building").iterdir())
    assert len(left) == 1
    # The lock of a dead process is free, and what it left is cleared away.
    assert store.obtain(KEY, write(b"engine"), label="toy").intact()
    assert list((tmp_path / ".building").iterdir()) == []


def test_what_killed_builds_left_can_be_swept_up(tmp_path: Path) -> None:
    with child(tmp_path) as first:
        assert hear(first) == "building"
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert EngineStore(tmp_path).sweep() == len(b"half")
    assert list((tmp_path / ".building").iterdir()) == []


def test_engines_are_listed_the_latest_used_first_and_removed(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    for version in ("1", "2", "3"):
        built = store.obtain(replace(KEY, version=version), write(b"engine"), label=version)
        os.utime(built.path.with_name("manifest.json"), (0, int(version)))
    store.obtain(replace(KEY, version="1"), refuse, label="1")  # used just now
    assert [engine.label for engine in store.engines()] == ["1", "3", "2"]
    last = list(store.engines())[-1]
    assert store.remove(last)
    assert [engine.label for engine in store.engines()] == ["1", "3"]


def test_listing_reads_no_engine_and_what_is_seen_to_be_damaged_is_swept_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EngineStore(tmp_path)
    short, other, lost, whole = (
        store.obtain(replace(KEY, version=version), write(b"engine"), label=version) for version in "1234"
    )
    short.path.write_bytes(b"eng")
    other.path.write_bytes(b"enginE")  # of the same length: only reading it tells
    lost.path.with_name("manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("toonstream.engines.store.file_checksum", refuse)
        assert {engine.label: engine.whole for engine in store.engines()} == {
            "1": False,
            "2": True,
            "4": True,
        }
        assert store.sweep() > len(b"eng" + b"engine")
    assert {engine.label: engine.intact() for engine in store.engines()} == {"2": False, "4": True}
    assert whole.path.is_file()
    assert not lost.path.exists()


def test_an_engine_that_is_being_rebuilt_is_not_removed(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    built = store.obtain(KEY, write(b"engine"), label="toy")
    built.path.write_bytes(b"damaged")
    with child(tmp_path) as process:
        assert "damaged" in hear(process)
        assert hear(process) == "building"
        assert not store.remove(built)


ages = st.floats(0, 100)
engines = st.lists(
    st.builds(
        StoredEngine,
        digest=st.uuids().map(str),
        label=st.just("toy"),
        key=st.just({}),
        path=st.just(Path()),
        size=st.integers(1, 50),
        checksum=st.just(""),
        built=ages,
        seconds=st.just(1.0),
        used=ages,
    ),
    max_size=8,
)


@given(engines, st.none() | ages, st.none() | ages, st.none() | st.integers(0, 200))
def test_pruning_keeps_what_the_limits_allow(
    stored: list[StoredEngine], older_than: float | None, unused_for: float | None, keep_bytes: int | None
) -> None:
    gone = to_prune(stored, now=100.0, older_than=older_than, unused_for=unused_for, keep_bytes=keep_bytes)
    kept = [engine for engine in stored if engine not in gone]
    if older_than is not None:
        assert all(100.0 - engine.built <= older_than for engine in kept)
    if unused_for is not None:
        assert all(100.0 - engine.used <= unused_for for engine in kept)
    if keep_bytes is not None:
        assert sum(engine.size for engine in kept) <= keep_bytes
    else:
        for engine in gone:  # each for a reason
            old = older_than is not None and 100.0 - engine.built > older_than
            assert old or (unused_for is not None and 100.0 - engine.used > unused_for)
    if older_than is unused_for is keep_bytes is None:
        assert not gone


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert EngineStore().folder == tmp_path / "engines"
    monkeypatch.delenv("TOONSTREAM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "toonstream"
