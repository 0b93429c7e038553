"""`toonstream SRC DST…`: a live stream from one address to others."""

import argparse
import atexit
import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args

from toonstream.commands.garbage import pass_over_what_is_there
from toonstream.commands.leaving import leave
from toonstream.config import EngineName, LoraChoice, Size
from toonstream.errors import SettingError, ToonstreamError
from toonstream.interrupt import EXIT_SIGNAL, Interrupt
from toonstream.parser import Parser

if TYPE_CHECKING:
    from toonstream.server.pipes import WhipSource
    from toonstream.stream.live.settings import LiveSettings
    from toonstream.stream.relay import RelayNews, Source
    from toonstream.stream.retry import Patience
    from toonstream.stream.sinks.open import Destination

__all__ = ["run"]

EXIT_ERROR = 2
_LINE_SECONDS = 5.0  # between two lines where nobody watches a terminal
_BIT_RATES = (50_000, 100_000_000)  # bits a second
_DEFLICKER = ("off", "causal")  # the other ways look ahead
_MODES = ("wavefront", "anchored")  # skewed waits longer for the same result
_MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000}

_USAGE = """toonstream SRC DST [DST...] [options]
       toonstream live SRC DST [DST...] [options]"""
_DESCRIPTION = """SRC: rtmp://, rtsp://, http(s):// (HLS and others), udp://, webcam:0, screen:,
whip://HOST:PORT (others publish), or a file, played as fast as it was filmed.
DST: rtmp(s)://, udp://, tcp://, a folder or .m3u8 (HLS), a file, or
whep://HOST:PORT/NAME (others watch). Whatever is away is waited for, and keys
in addresses are never shown. Ctrl-C ends it."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser("toonstream live", usage=_USAGE, description=_DESCRIPTION)
    parser.add_argument("source", metavar="SRC", help=argparse.SUPPRESS)
    parser.add_argument("destinations", nargs="+", metavar="DST", help=argparse.SUPPRESS)
    add = parser.add_argument_group("options").add_argument
    add("--listen", action="store_true", help="wait at SRC for somebody who publishes (OBS)")
    add("--latency", metavar="TIME", help="promise 400ms or 2s; what is drawn adapts")
    add("--retry", metavar="N", help="failures in a row to put up with, or forever")
    add("--tls-cert", type=Path, metavar="PEM", help="with --tls-key PEM: whip:// and whep:// by https")
    add("--tls-key", type=Path, help=argparse.SUPPRESS)
    add("--bitrate", metavar="BITS", help="of the pictures on networks: 2500k, 4M")
    add("--prompt", metavar="TEXT", help="what it should look like")
    add("--negative-prompt", metavar="TEXT", help="what it should not (guidance above 1)")
    add("--style", metavar="NAME", help="hosoda, shinkai, hayao, ink, flat")
    add("--steps", type=int, metavar="N", help="denoising steps, 1 to 50")
    add("--window", type=int, metavar="N", help="frames denoised together, 1 to 32")
    add("--stride", type=int, metavar="N", help="frames from window to window, 1 to window")
    add("--mode", choices=_MODES, metavar="M", help="wavefront | anchored (to what is final)")
    add("--overlap", type=int, metavar="N", help="anchored: final frames in a window (a quarter)")
    add("--guidance", type=float, metavar="G", help="how strictly to follow the prompt; 1 is off")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other details (0)")
    add("--size", metavar="SIZE", help="640x360, or the short side; else at most 384")
    add("--skip", type=float, metavar="T", help="repeat toons where frames differ by T of 255; 3")
    add("--deflicker", choices=_DEFLICKER, metavar="D", help="off | causal: blend with the toon before")
    add(
        "--remember",
        type=int,
        default=0,
        metavar="N",
        help="done frames that new ones attend to; --reference SHEET",
    )
    add("--reference", type=Path, metavar="SHEET", help=argparse.SUPPRESS)
    add("--side-by-side", action="store_true", help="source on the left, toon on the right")
    add(
        "--engine",
        default="auto",
        choices=get_args(EngineName),
        metavar="E",
        help="|".join(get_args(EngineName)),
    )
    add("--model", metavar="MODEL", help="a name from toonstream models, or a folder")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE",
        help="or FILE=WEIGHT: put into the model; repeatable",
    )
    add("--json", action="store_true", help="one JSON object a line, once a second at most")
    add("-q", "--quiet", action="store_true", help="say nothing but errors; --debug: with traceback")
    add("--debug", action="store_true", help=argparse.SUPPRESS)
    add("-h", "--help", action="help", help="show this, and exit")
    return parser


def run(words: Sequence[str]) -> int:
    """Run the command; gives the exit code: 0, or 128 + n when ended by signal n.

    Raises:
        ToonstreamError: source, destinations or settings cannot be used, or failed for good.
    """
    options = _parser().parse_intermixed_args(words)
    bit_rate = None if options.bitrate is None else _bit_rate(options.bitrate)
    retry = _retry(options.retry)

    from toonstream.stream.address import scheme
    from toonstream.stream.clock import monotonic
    from toonstream.stream.sinks.open import open_destination
    from toonstream.stream.sources.live import LiveSource
    from toonstream.stream.sources.open import open_source

    with ExitStack() as served:
        whips = scheme(options.source) == "whip"
        listening = _listening(options)
        opening = None if whips else open_source(options.source, listen=options.listen)
        local = Path(opening.shown) if opening and opening.url.startswith("file:") else None
        destinations = [
            _whep(address, bit_rate, listening, served)
            if scheme(address) == "whep"
            else open_destination(address, source=local)
            for address in options.destinations
        ]
        if options.retry is None:
            _reach(options)
        source = (
            _whip(options.source, listening, served)
            if opening is None
            else LiveSource(opening, clock=monotonic)
        )
        paced = opening is not None and opening.paced
        with Interrupt() as interrupt:
            return _relay(source, destinations, options, retry, bit_rate, interrupt, paced=paced)


def _listening(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the servers that whip:// and whep:// are."""
    if not (options.tls_cert or options.tls_key):
        return {}
    from toonstream.stream.address import scheme

    ends = {scheme(address) for address in (options.source, *options.destinations)}
    if not ends & {"whip", "whep"}:
        raise SettingError(
            "--tls-cert and --tls-key are for whip:// and whep://, which listen here: leave them out"
        )
    return {"tls_cert": options.tls_cert, "tls_key": options.tls_key}


def _whip(address: str, listening: Mapping[str, Any], served: ExitStack) -> "WhipSource":
    """Somebody publishes to us."""
    from toonstream.server.pipes import WhipSource

    return served.enter_context(WhipSource(address, **listening))


def _whep(
    address: str, bit_rate: int | None, listening: Mapping[str, Any], served: ExitStack
) -> "Destination":
    """Others watch at ours."""
    from toonstream.server.pipes import WhepOutput

    settings = {} if bit_rate is None else {"bitrate": bit_rate}
    return served.enter_context(WhepOutput(address, **listening, **settings)).destination


def _reach(options: argparse.Namespace) -> None:
    """Say at once that nobody is there: a wrong address is not worth loading networks for."""
    from toonstream.errors import InputError, OutputError
    from toonstream.stream.reach import reach

    if not options.listen:
        reach(options.source, InputError)
    for address in options.destinations:
        reach(address, OutputError)


def _relay(
    source: "Source",
    destinations: "Sequence[Destination]",
    options: argparse.Namespace,
    patience: "Patience",
    bit_rate: int | None,
    interrupt: Interrupt,
    *,
    paced: bool,
) -> int:
    from toonstream.engines.select import engine_name
    from toonstream.export.assemble import load_model
    from toonstream.export.loras import with_loras
    from toonstream.stream.clock import monotonic
    from toonstream.stream.live.session import LiveSession
    from toonstream.stream.relay import Relay
    from toonstream.stream.serving import open_live_networks
    from toonstream.stream.sinks.tee import Outlet, Tee

    settings = _settings(options)
    reporter = _make_reporter(quiet=options.quiet, machine_readable=options.json)
    engine = engine_name(options.engine)
    model = load_model(options.model, engine=engine, say=reporter.note)
    model = with_loras(model, map(LoraChoice.parse, options.lora))
    shared = open_live_networks(engine, model, settings, say=reporter.note)
    pass_over_what_is_there()
    relay = Relay(
        source,
        lambda deliver, ended: LiveSession(
            shared,
            settings,
            deliver=deliver,
            ended=ended,
            notify=lambda event: reporter.note(event.message) if event.kind != "end" else None,
            clock=monotonic,
            name="relay",
        ),
        Tee([Outlet(destination, patience, note=reporter.note) for destination in destinations]),
        size=settings.size.of,
        patience=patience,
        promise=settings.latency,
        note=reporter.note,
        prepare=(lambda size: shared.warm_up(settings, size)) if paced else None,
        beside=options.side_by_side,
        bit_rate=bit_rate,
        clock=monotonic,
    )
    reporter.start(
        {
            "source": source.shown,
            "destinations": [destination.shown for destination in destinations],
            "model": model.defaults.name,
            "engine": engine,
        }
    )
    code = EXIT_SIGNAL + signal.SIGINT  # of a second Ctrl-C, which waits for nothing
    try:
        news = relay.run(stopped=lambda: interrupt.number is not None, observe=reporter.progress)
        code = 0 if interrupt.number is None else EXIT_SIGNAL + interrupt.number
        reporter.done(news)
    except ToonstreamError:
        code = EXIT_ERROR
        raise
    finally:
        if relay.left_behind:
            atexit.register(leave, code)
    return code


def _settings(options: argparse.Namespace) -> "LiveSettings":
    from toonstream.stream.live.settings import LiveSettings, parse_latency

    settings = LiveSettings(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        style=options.style,
        seed=options.seed,
        steps=options.steps,
        window=options.window,
        stride=options.stride,
        mode=options.mode,
        overlap=options.overlap,
        guidance=options.guidance,
        latency=None if options.latency is None else parse_latency(options.latency),
        skip=options.skip,
        deflicker=options.deflicker,
        remember=options.remember,
        reference=options.reference,
    )
    return settings if options.size is None else replace(settings, size=Size.parse(options.size))


def _retry(text: str | None) -> "Patience":
    """How patient to be; without a word, forever, but not with what has never worked."""
    from toonstream.stream.retry import FOREVER, Patience

    if text is None:
        return Patience()
    if text == "forever":
        return Patience(limit=FOREVER, first_limit=FOREVER)
    if text.isascii() and text.isdigit():
        return Patience(limit=int(text), first_limit=int(text))
    raise SettingError(f"retry {text!r}: give a number of failures in a row, or forever")


def _bit_rate(text: str) -> int:
    """Read `2500k` or `4M` as bits a second."""
    number, unit = text.rstrip("kKmM"), text[len(text.rstrip("kKmM")) :].lower()
    try:
        bits = round(float(number) * _MULTIPLES[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise SettingError(f"bitrate {text!r}: write 2500k or 4M") from error
    if not _BIT_RATES[0] <= bits <= _BIT_RATES[1]:
        raise SettingError(f"bitrate {text!r}: take 50k to 100M bits a second")
    return bits


class _Silent:
    """Says nothing."""

    def start(self, facts: Mapping[str, object]) -> None:
        """Everything is ready."""

    def note(self, line: str) -> None:
        """Something happened."""

    def progress(self, news: "RelayNews") -> None:
        """A second has passed."""

    def done(self, news: "RelayNews") -> None:
        """It is over."""


class _Lines(_Silent):
    """Lines for people: what happens at once, how it goes every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()  # notes come on any thread
        self._told = 0.0

    def start(self, facts: Mapping[str, object]) -> None:
        destinations = facts["destinations"]
        assert isinstance(destinations, list)
        self._say(f"{facts['source']} → {', '.join(destinations)}; Ctrl-C ends it")

    def note(self, line: str) -> None:
        self._say(line)

    def progress(self, news: "RelayNews") -> None:
        if news.seconds - self._told >= _LINE_SECONDS:
            self._told = news.seconds
            self._say(news.summary())

    def done(self, news: "RelayNews") -> None:
        written = ", ".join(f"{outlet.name}: {outlet.frames} frames" for outlet in news.outlets)
        self._say(f"{written}; {news.dropped} dropped in {news.seconds:.1f} s")

    def _say(self, line: str) -> None:
        with self._lock:
            self._stream.write(" ".join(line.split()) + "\n")
            self._stream.flush()


class _MachineReadable(_Lines):
    """One JSON object a line, each with an `event`: start, live, note, done."""

    def start(self, facts: Mapping[str, object]) -> None:
        self._write("start", facts)

    def note(self, line: str) -> None:
        self._write("note", {"message": line})

    def progress(self, news: "RelayNews") -> None:
        self._write("live", news.facts())

    def done(self, news: "RelayNews") -> None:
        self._write("done", news.facts())

    def _write(self, event: str, facts: Mapping[str, object]) -> None:
        self._say(json.dumps({"event": event, **facts}))


def _make_reporter(*, quiet: bool, machine_readable: bool) -> _Silent:
    if machine_readable:
        return _MachineReadable(sys.stdout)
    return _Silent() if quiet else _Lines(sys.stderr)
