"""`toonstream serve`: the page, WHIP and WHEP."""

import argparse
import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from toonstream.commands.garbage import pass_over_what_is_there
from toonstream.commands.leaving import leave
from toonstream.config import EngineName, LoraChoice, Size
from toonstream.errors import SettingError
from toonstream.parser import Parser
from toonstream.server.loop import new_event_loop
from toonstream.server.settings import TOKEN_VARIABLE, Codec, IceServer, ServerSettings, read_ice_servers
from toonstream.stream.live.settings import LiveSettings, parse_latency

__all__ = ["run"]

_USAGE = "toonstream serve [options]     a page that draws you; WHIP in, WHEP out"


def _parser() -> argparse.ArgumentParser:
    parser = Parser("toonstream serve", usage=_USAGE)
    add = parser.add_argument_group("where").add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="0.0.0.0 for all; needs a token (127.0.0.1)",
    )
    add("--port", type=int, default=8080, metavar="N", help="0 for any that is free (8080)")
    add("--token", metavar="TEXT", help=f"what clients must show; better in ${TOKEN_VARIABLE}")
    add("--tls-cert", type=Path, metavar="PEM", help="browsers give cameras to https only, ...")
    add("--tls-key", type=Path, metavar="PEM", help="... but for localhost")
    add(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="its pages may use this, too; repeatable",
    )
    add(
        "--ice-server",
        action="append",
        default=[],
        metavar="URL",
        help="stun:HOST:PORT, turn:USER:PASSWORD@HOST:PORT",
    )
    add("--ice-servers", type=Path, metavar="JSON", help="the same from a file, as browsers have it")
    add = parser.add_argument_group("how much").add_argument
    add("--max-sessions", type=int, default=2, metavar="N", help="publishers at a time (2)")
    add("--max-watchers", type=int, default=50, metavar="N", help="watchers at a time (50)")
    add("--latency", default="400ms", metavar="TIME", help="promised; the rest gives way to it (400ms)")
    add(
        "--codec",
        default="vp8",
        choices=get_args(Codec),
        metavar="C",
        help="vp8 | h264, where clients have it",
    )
    add("--bitrate", default="2.5M", metavar="BITS", help="of each picture, per second (2.5M)")
    add("--grace", type=float, default=5.0, metavar="SECONDS", help="that saying goodbye may take (5)")
    add = parser.add_argument_group("what it looks like, until somebody chooses").add_argument
    add("--prompt", metavar="TEXT", help="what it should look like")
    add("--style", metavar="NAME", help="hosoda, shinkai, hayao, ink, flat")
    add("--steps", type=int, metavar="N", help="denoising steps at most")
    add("--window", type=int, metavar="N", help="frames denoised together")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other details (0)")
    add("--deflicker", choices=("off", "causal"), metavar="D", help="off | causal: with the toon before")
    add("--remember", type=int, default=0, metavar="N", help="frames of the past that new ones attend to")
    add("--reference", type=Path, metavar="PICTURE", help="a character or style sheet to attend to")
    add("--size", default=None, metavar="SIZE", help="640x360, or the short side; else at most 384")
    add(
        "--engine",
        default="auto",
        choices=get_args(EngineName),
        metavar="E",
        help=" | ".join(get_args(EngineName)),
    )
    add("--model", metavar="MODEL", help="a name from toonstream models, or a folder")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE",
        help="or FILE=WEIGHT: put into the model; repeatable",
    )
    add("--loras", type=Path, metavar="FOLDER", help="let viewers choose LoRAs from it, by name")
    add("-q", "--quiet", action="store_true", help="say nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("-h", "--help", action="help", help="show this, and exit")
    return parser


def run(words: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; gives the exit code.

    Raises:
        ToonstreamError: the options, the address or the model are no use.
    """
    options = _parser().parse_args(list(words))
    settings = _server_settings(options)
    live = _live_settings(options, settings)
    settings.ssl_context()
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("toonstream").setLevel(logging.WARNING if options.quiet else logging.INFO)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(settings, live, options))
    return 0


def _server_settings(options: argparse.Namespace) -> ServerSettings:
    servers = tuple(IceServer.parse(text) for text in options.ice_server)
    if options.ice_servers is not None:
        servers += read_ice_servers(options.ice_servers)
    return ServerSettings(
        host=options.host,
        port=options.port,
        token=options.token or os.environ.get(TOKEN_VARIABLE) or None,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        ice_servers=servers,
        origins=tuple(options.origin),
        max_sessions=options.max_sessions,
        max_watchers=options.max_watchers,
        latency=parse_latency(options.latency),
        codec=options.codec,
        bitrate=_parse_bitrate(options.bitrate),
        grace=options.grace,
    )


def _live_settings(options: argparse.Namespace, settings: ServerSettings) -> LiveSettings:
    return LiveSettings(
        prompt=options.prompt,
        style=options.style,
        steps=options.steps,
        window=options.window,
        seed=options.seed,
        deflicker=options.deflicker,
        remember=options.remember,
        reference=options.reference,
        latency=settings.latency,
        size=Size(short=384, cap=True) if options.size is None else Size.parse(options.size),
    )


def _parse_bitrate(text: str) -> int:
    """Read `2500000`, `2500k` or `2.5M` bits per second."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([kKmM]?)", text.strip())
    if match is None:
        raise SettingError(f"bitrate {text!r}: write 2.5M or 2500k")
    return round(float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()])


async def _serve(settings: ServerSettings, live: LiveSettings, options: argparse.Namespace) -> None:
    from toonstream.engines.select import engine_name
    from toonstream.export.assemble import load_model
    from toonstream.export.loras import find_loras, with_loras
    from toonstream.server.app import Server
    from toonstream.server.drawing import Drawing
    from toonstream.server.live import Change, Deliver, Ended, Live

    drawing: Drawing | None = None

    def open_live(change: Change, deliver: Deliver, ended: Ended) -> Live:
        assert drawing is not None
        return drawing(change, deliver, ended)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    def load() -> Drawing:
        engine = engine_name(options.engine)
        model = load_model(options.model, engine=engine, say=say)
        model = with_loras(model, map(LoraChoice.parse, options.lora))
        loras = {} if options.loras is None else find_loras(options.loras, model, say=say)
        drawing = Drawing.load(model, live, engine=engine, loras=loras, say=say)
        pass_over_what_is_there()
        return drawing

    async with Server(settings, open_live) as server:
        stopping = asyncio.create_task(stop.wait())
        loading = asyncio.create_task(asyncio.to_thread(load))
        await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            drawing = await loading
            server.loaded(drawing.catalogue)
            say(f"toonstream: open {server.url} (Ctrl-C ends it)")
            await stopping
        say(f"toonstream: saying goodbye, within {settings.grace:g} s")
    if server.left_behind or not loading.done():
        leave(0)
