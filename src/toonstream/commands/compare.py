"""`toonstream compare`: a clip in several modes next to one another, with their figures on the picture."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from toonstream.commands.names import beside
from toonstream.config import EngineName, LoraChoice, Settings, Size
from toonstream.interrupt import EXIT_SIGNAL, Interrupt
from toonstream.modes import mode_names, mode_options, parse_modes
from toonstream.parser import Parser

__all__ = ["run"]

_EXIT_DAMAGED = 2
_MODES = "frame,wavefront,anchored"

_USAGE = "toonstream compare CLIP [--modes MODE,MODE...] [-o OUT] [options]"
_DESCRIPTION = """Render CLIP in several modes next to one another and to the source, with the
figures of each on the picture: its flow-warped error as a multiple of the
source's own (1.00x is as steady as the film), its flicker in flat areas
(levels), and frames a second while it drew."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser("toonstream compare", usage=_USAGE, description=_DESCRIPTION, epilog=_epilog())
    parser.add_argument("clip", type=Path, metavar="CLIP", help=argparse.SUPPRESS)
    add = parser.add_argument_group("options (unset ones are the model's choice)").add_argument
    add("--modes", default=_MODES, metavar="M,M", help=f"some of those below ({_MODES})")
    add("-o", "--output", type=Path, metavar="OUT", help="write here instead of CLIP.compare.mp4")
    add("--prompt", metavar="TEXT", help="what it should look like")
    add("--style", metavar="NAME", help="hosoda, shinkai, hayao, ink, flat")
    add("--size", metavar="SIZE", help="of each picture: 640x360, or the short side")
    add("--start", type=float, default=0.0, metavar="SECONDS", help="leave out the beginning")
    add("--duration", type=float, metavar="SECONDS", help="render this much")
    add("--engine", default="auto", choices=get_args(EngineName), metavar="E", help="what runs the networks")
    add("--model", metavar="MODEL", help="a name from toonstream models, or a folder")
    add("--lora", action="append", default=[], metavar="FILE", help="or FILE=WEIGHT; repeatable")
    add("--json", action="store_true", help="one JSON object a line on standard output")
    add("-q", "--quiet", action="store_true", help="say nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("-h", "--help", action="help", help="show this, and exit")
    return parser


def _epilog() -> str:
    options = textwrap.fill(", ".join(mode_options()), 76, initial_indent="  ", subsequent_indent="  ")
    return (
        f"modes: {', '.join(mode_names())} (frame: each by itself)\n"
        f"with +OPTION=VALUE, such as wavefront+window=8+steps=2:\n{options}"
    )


def run(words: Sequence[str]) -> int:
    """Run the command; gives the exit code, as the main job does.

    Raises:
        ToonstreamError: clip, modes or settings cannot be used, or the result cannot be written.
    """
    options = _parser().parse_args(words)
    base = Settings(
        prompt=options.prompt,
        style=options.style,
        size=None if options.size is None else Size.parse(options.size),
        start=options.start,
        duration=options.duration,
        engine=options.engine,
        model=options.model,
        loras=tuple(map(LoraChoice.parse, options.lora)),
    )
    modes = parse_modes(options.modes, base)
    output = options.output or beside(options.clip, ".compare.mp4")
    with Interrupt() as interrupt:
        from toonstream.progress import make_reporter
        from toonstream.stream.compare import compare_clip

        reporter = make_reporter(quiet=options.quiet, machine_readable=options.json)
        compared = compare_clip(
            options.clip,
            output,
            modes,
            started=reporter.start,
            observe=reporter.progress,
            stopped=lambda: interrupt.number is not None,
            say=lambda line: None if options.quiet or options.json else print(line, file=sys.stderr),
        )
        reporter.done(compared.facts(), "\n".join([compared.summary(), *compared.rendered.notes]))
        if interrupt.number is not None:
            return EXIT_SIGNAL + interrupt.number
        if compared.rendered.damage:
            print(f"toonstream: {options.clip}: {compared.rendered.damage.message}", file=sys.stderr)
            return _EXIT_DAMAGED
    return 0
