"""The command line. Nothing heavy is imported before the arguments are read and checked."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_args

from toonstream import __version__
from toonstream.config import Deflickering, EngineName, LoraChoice, Matching, Mode, Settings, Size
from toonstream.errors import SettingError, ToonstreamError
from toonstream.interrupt import EXIT_SIGNAL, Interrupt
from toonstream.parser import Parser
from toonstream.stream.address import is_address

__all__ = ["main"]

EXIT_ERROR = 2
COMMANDS = (
    "compare",
    "engines",
    "export",
    "live",
    "models",
    "serve",
)  # each is toonstream.commands.NAME, and has its own --help

_OF_LIVE = ("--latency", "--retry", "--bitrate", "--tls-cert", "--tls-key")
_USAGE = """toonstream CLIP [options]     render CLIP as a toon clip
       toonstream serve              a page that draws you; WHIP in, WHEP out
       toonstream SRC DST [DST...]   a live stream: toonstream live --help
       toonstream demo [FOLDER]      make a short scene of its own, render it
       toonstream compare CLIP | doctor | models | export | engines   and --help"""


class _HelpConsistency(argparse.Action):
    def __call__(self, *_: object) -> NoReturn:
        """Show the options that the first screen has no room for, and exit."""
        parser = Parser("toonstream", usage="toonstream CLIP [options]")
        _add_consistency(parser.add_argument_group("what keeps frames alike (off where not said)"))
        parser.print_help()
        parser.exit()


def _add_consistency(group: argparse._ArgumentGroup, *, shown: bool = True) -> None:
    def add(name: str, *, help: str, **options: Any) -> None:  # noqa: A002
        group.add_argument(name, help=help if shown else argparse.SUPPRESS, **options)

    add(
        "--mode",
        choices=get_args(Mode),
        metavar="M",
        help="wavefront | skewed | anchored (to what is final)",
    )
    add("--overlap", type=int, metavar="N", help="anchored: final frames in a window (a quarter)")
    add(
        "--deflicker",
        choices=get_args(Deflickering),
        metavar="D",
        help="off | balanced | accurate | causal: blend neighbours",
    )
    add("--deflicker-window", type=int, metavar="N", help="frames on each side, 1 to 30")
    add("--keyframes", type=int, default=1, metavar="K", help="draw every Kth frame, move it to the rest")
    add(
        "--matcher",
        default="flow",
        choices=get_args(Matching),
        metavar="M",
        help="of these two: flow | patchmatch (slow: for GPUs)",
    )
    add("--remember", type=int, metavar="N", help="frames of the past that new ones attend to, to 8")
    add("--shared-noise", type=float, metavar="P", help="part of the noise that all frames have, 0 to 1")
    add("--fusion", type=float, metavar="S", help="share along the source's motion, 0 (off) to 1")
    add("--flow", type=Path, metavar="FILE", help="motion by this RAFT checkpoint, for --fusion")
    add("--reference", type=Path, metavar="PICTURE", help="a character or style sheet to attend to")
    add("--skip", type=float, metavar="T", help="repeat toons where frames differ by T of 255; 3")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("toonstream", usage=_USAGE)
    parser.add_argument("subject", nargs="?", metavar="CLIP", help=argparse.SUPPRESS)
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    for name in _OF_LIVE:  # known here to be read past
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--listen", action="store_true", help=argparse.SUPPRESS)
    add = parser.add_argument_group("options (unset ones are the model's choice)").add_argument
    add("-o", "--output", type=Path, metavar="OUT", help="write here instead of CLIP.toon.mp4")
    add("--prompt", metavar="TEXT", help="what it should look like")
    add("--negative-prompt", metavar="TEXT", help="what it should not (guidance above 1)")
    add("--style", metavar="NAME", help="hosoda, shinkai, hayao, ink, flat")
    add("--steps", type=int, metavar="N", help="denoising steps, 1 to 50")
    add("--window", type=int, metavar="N", help="frames denoised together, 1 to 32")
    add("--stride", type=int, metavar="N", help="frames from window to window, 1 to window")
    add("--guidance", type=float, metavar="G", help="how strictly to follow the prompt; 1 is off")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other details (0)")
    add("--size", metavar="SIZE", help="640x360, or the short side, such as 360")
    add("--start", type=float, default=0.0, metavar="SECONDS", help="leave out the beginning")
    add("--duration", type=float, metavar="SECONDS", help="render this much")
    add("--side-by-side", action="store_true", help="source on the left, toon on the right")
    add("--contact-sheet", type=Path, metavar="PNG", help="picture of source over toon frames")
    add(
        "--engine",
        default="auto",
        choices=get_args(EngineName),
        metavar="E",
        help="auto, or one that toonstream doctor names",
    )
    add("--model", metavar="MODEL", help="a name from toonstream models, or a folder")
    add("--lora", action="append", default=[], metavar="FILE", help="or FILE=WEIGHT: put into the model")
    add("--allow-pickle", action="store_true", help=argparse.SUPPRESS)  # errors name it where it matters
    add("--json", action="store_true", help="one JSON object a line on standard output")
    add("-q", "--quiet", action="store_true", help="say nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"toonstream {__version__}", help="show it, and exit")
    add("-h", "--help", action="help", help="show this, and exit")
    add("--help-consistency", action=_HelpConsistency, nargs=0, help="show what is against flicker")
    _add_consistency(parser.add_argument_group(), shown=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code.

    0: done. 2: an error, said in one line on standard error; also for a damaged clip, whose output is kept.
    128 + n: ended by signal n; what was committed is written, and plays.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in words
    try:
        if words and words[0] in COMMANDS:
            return _command(words[0], words[1:])
        options = _parser().parse_intermixed_args(words)
        if _is_live(options):
            return _command("live", words)
        return _run(options)
    except ToonstreamError as error:
        if debug:
            raise
        print(f"toonstream: {_one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_SIGNAL + signal.SIGINT


def _command(name: str, words: Sequence[str]) -> int:
    command = importlib.import_module(f"toonstream.commands.{name}")
    return int(command.run(words))


def _is_live(options: argparse.Namespace) -> bool:
    """Whether this is `toonstream SRC DST…`. Two plain clips are not: the second would be written over."""
    if options.subject in (None, "demo", "doctor"):
        return False
    return any(map(is_address, [options.subject, *options.more])) or any(
        name.lower().endswith((".m3u8", "/")) for name in options.more
    )


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.subject == "doctor":
        from toonstream.doctor import examine

        return examine(sys.stdout)
    if options.subject == "demo":
        from toonstream.demo import draw_scene

        clip = draw_scene(Path(options.more[0] if options.more else "toonstream-demo"))
        settings = replace(settings, side_by_side=True)
    elif options.subject is None:
        raise SettingError("name a clip, or try toonstream demo; see toonstream --help")
    elif options.more:
        raise SettingError(
            f"one clip at a time: leave out {options.more[0]}, or write it with -o {options.more[0]}"
        )
    elif options.listen or any(getattr(options, name[2:].replace("-", "_")) for name in _OF_LIVE):
        named = f"--listen, {', '.join(_OF_LIVE[:-1])} and {_OF_LIVE[-1]}"
        raise SettingError(f"{named} are for live streams: name a DST, too")
    else:
        clip = Path(options.subject)
    with Interrupt() as interrupt:
        return _render(clip, options, settings, interrupt)


def _render(clip: Path, options: argparse.Namespace, settings: Settings, interrupt: Interrupt) -> int:
    from toonstream.commands.garbage import left_alone
    from toonstream.commands.names import beside

    output = options.output or beside(clip, ".toon.mp4")
    with left_alone():
        from toonstream.stream.ahead import begin

        begun = begin(clip, settings)  # networks compile while torch is imported
        from toonstream.progress import make_reporter
        from toonstream.stream.render import render_clip

    reporter = make_reporter(quiet=options.quiet, machine_readable=options.json)
    rendered = render_clip(
        clip,
        output,
        settings,
        begun=begun,
        started=reporter.start,
        observe=reporter.progress,
        stopped=lambda: interrupt.number is not None,
        say=lambda line: None if options.quiet or options.json else print(line, file=sys.stderr),
    )
    reporter.done(rendered.facts(), "\n".join([rendered.summary(), *rendered.notes]))
    if interrupt.number is not None:
        return EXIT_SIGNAL + interrupt.number
    if rendered.damage:
        print(f"toonstream: {clip}: {rendered.damage.message}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        style=options.style,
        steps=options.steps,
        window=options.window,
        stride=options.stride,
        guidance=options.guidance,
        seed=options.seed,
        size=None if options.size is None else Size.parse(options.size),
        start=options.start,
        duration=options.duration,
        side_by_side=options.side_by_side,
        contact_sheet=options.contact_sheet,
        engine=options.engine,
        model=options.model,
        allow_pickle=options.allow_pickle,
        loras=tuple(map(LoraChoice.parse, options.lora)),
        mode=options.mode,
        overlap=options.overlap,
        deflicker=options.deflicker,
        deflicker_window=options.deflicker_window,
        keyframes=options.keyframes,
        skip=options.skip,
        matcher=options.matcher,
        reference=options.reference,
        remember=options.remember,
        shared_noise=options.shared_noise,
        fusion=options.fusion,
        flow=options.flow,
    )


def _one_line(error: ToonstreamError) -> str:
    return " ".join(str(error).split())
