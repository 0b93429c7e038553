"""`toonstream engines`: build networks into engines ahead, look at what is kept, check it, throw it away."""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from toonstream.config import Mode, Settings, Size
from toonstream.errors import SettingError
from toonstream.parser import Parser

if TYPE_CHECKING:
    from toonstream.engines.engine import NetworkSource
    from toonstream.engines.store import StoredEngine
    from toonstream.engines.tensorrt.engine import TensorRtEngine
    from toonstream.export.checkpoints import Model
    from toonstream.export.shapes import Envelope

__all__ = ["run"]

_SIZE = "512x512"  # of frames, where none is asked for
_GUIDED = 2.0  # a guidance that needs both sides
_ANY_PICTURE = Path()  # engines are the same for all
_DAY = 86400.0  # seconds
_GB = 1e9  # bytes
_LINE_SECONDS = 2.0  # between two lines of a build's progress
# What rounding alone makes of a network's outputs, on noise; what is not here has half precision's.
_TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-1}

_USAGE = """toonstream engines list
       toonstream engines inspect KEY
       toonstream engines build MODEL [--engine E] [--compute-capability N.N] [--size WxH]
       toonstream engines verify MODEL [--engine E] [--size WxH]
       toonstream engines prune [--older-than DAYS] [--unused DAYS] [--keep GB] [--all]"""


def run(words: Sequence[str]) -> int:
    """Run the command; gives the exit code: 0, or 1 where `verify` finds a difference."""
    options = _parser().parse_args(words)
    match options.action:
        case "list":
            return _list()
        case "inspect":
            return _inspect(options)
        case "build":
            return _build(options)
        case "verify":
            return _verify(options)
    return _prune(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "toonstream engines",
        usage=_USAGE,
        description="MODEL is a model folder, or a preset such as toonlet; KEY an engine's, from list.",
        column=29,
    )
    actions = ("list", "inspect", "build", "verify", "prune")
    parser.add_argument("action", choices=actions, help=argparse.SUPPRESS)
    parser.add_argument("model", nargs="?", metavar="MODEL", help=argparse.SUPPRESS)
    add = parser.add_argument_group("build, verify (unset ones are the model's choice)").add_argument
    add("--engine", metavar="E", help="tensorrt-rtx (to build), or any engine (to verify)")
    add("--compute-capability", type=_capability, metavar="N.N", help="of the GPU, if it is not here: 8.9")
    add("--size", metavar="WxH", help="of the frames (512x512; at most 384 with --live)")
    add("--live", action="store_true", help="for serve and live: sizes and windows that adapt")
    add("--steps", type=int, metavar="N", help="denoising steps")
    add("--window", type=int, metavar="N", help="frames denoised together")
    add("--stride", type=int, metavar="N", help="frames from window to window")
    add("--mode", choices=get_args(Mode), metavar="M", help=" | ".join(get_args(Mode)))
    add("--guided", action="store_true", help="for guidance above 1, whatever the model's")
    add("--remember", type=int, metavar="N", help="frames of the past that frames attend to")
    add("--reference", action="store_true", help="for a picture that they attend to")
    add("--networks", metavar="A,B", help="only these, such as unet,vae_decoder")
    add("--timeout", type=float, default=3600.0, metavar="SECONDS", help="for each network (3600)")
    add("--tolerance", type=float, metavar="X", help="largest relative error that passes")
    add = parser.add_argument_group("prune (what is damaged goes, what is being built stays)").add_argument
    add("--older-than", type=float, metavar="DAYS", help="what was built longer ago")
    add("--unused", type=float, metavar="DAYS", help="what was not used for so long")
    add("--keep", type=float, metavar="GB", help="all but the latest used, so many GB of them")
    add("--all", action="store_true", help="everything")
    parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this, and exit")
    return parser


def _capability(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability; give one such as 8.9")
    return int(match[1]), int(match[2])


def _list() -> int:
    from toonstream.engines.store import EngineStore

    store = EngineStore()
    total = 0
    for engine in store.engines():
        total += engine.size
        state = "" if engine.whole else "  DAMAGED: it is built again when it is needed"
        print(
            f"{engine.digest[:12]}  {engine.label:28} {engine.key['flavour']} {engine.key['version']} "
            f"for {engine.key['compute_capability']}, {engine.key['precision']}, {engine.largest_input}, "
            f"{engine.size / 1e6:.1f} MB, used {_ago(time.time() - engine.used)} ago{state}"
        )
    print(f"{total / 1e6:.1f} MB in {store.folder}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    import torch

    from toonstream.engines.proof import kept_proofs
    from toonstream.engines.store import EngineStore

    store = EngineStore()
    if not options.model:
        raise SettingError("inspect which engine? Give its key, as toonstream engines list has it")
    found = [engine for engine in store.engines() if engine.digest.startswith(options.model)]
    if not found:
        raise SettingError(f"no engine has the key {options.model}; see toonstream engines list")
    if len(found) > 1:
        raise SettingError(f"{len(found)} keys begin with {options.model}: give more of the one you mean")
    (engine,) = found
    built = f"built {_ago(time.time() - engine.built)} ago in {engine.seconds} s"
    state = "as it was built" if engine.intact() else "DAMAGED: it is built again when it is needed"
    print(f"{engine.label}  {engine.path}")
    print(f"{engine.size / 1e6:.1f} MB, {built}, {state}")
    shapes = cast(Mapping[str, Sequence[Sequence[int]]], engine.key["shapes"])
    for name, value in engine.key.items():
        if name != "shapes" and value:
            print(f"{name:20} {' '.join(value) if isinstance(value, list) else value}")
    for name, triple in shapes.items():
        print(f"{name:20} {'  '.join('x'.join(map(str, shape)) for shape in triple)}")
    for card, proof in kept_proofs(engine.path).items():
        print(f"on {card}: {'agrees with torch' if proof.agrees else proof}")
    if not torch.cuda.is_available():
        print("its layers show where there is a GPU to load it")
        return 0
    return _layers(engine)


def _layers(engine: "StoredEngine") -> int:
    """Have Polygraphy show an engine's bindings and layers, in a process that its flavour is chosen for."""
    program = "import sys; from polygraphy.tools import main; sys.exit(main())"
    words = ["inspect", "model", str(engine.path), "--model-type", "engine", "--show", "layers"]
    rtx = "1" if engine.key["flavour"] == "tensorrt-rtx" else "0"
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *words],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": rtx},
        check=False,
    ).returncode


def _ago(seconds: float) -> str:
    for unit, length in (("days", _DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} seconds"


def _build(options: argparse.Namespace) -> int:
    from toonstream.engines.tensorrt.flavour import FLAVOURS

    name = options.engine or "tensorrt-rtx"
    if name not in FLAVOURS:
        raise SettingError(
            f"{name} needs no building ahead: render with --engine {name}, or build {' or '.join(FLAVOURS)}"
        )
    tell = _Teller()
    model, envelope = _open(options, name, tell)
    engine = _tensorrt(name, model, options, envelope, tell)
    for source in _networks(model, options):
        before = time.monotonic()
        stored = engine.build(source)
        tell.end()
        kept = stored.built < time.time() - (time.monotonic() - before) - 1.0
        how = "was there" if kept else f"built in {stored.seconds:.1f} s"
        print(f"{source.name:22} {stored.size / 1e6:8.1f} MB  {how}  {stored.path}", flush=True)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from toonstream.engines.compare import against_onnxruntime
    from toonstream.engines.proof import TOLERANCE
    from toonstream.engines.select import engine_name, open_engine
    from toonstream.engines.tensorrt.flavour import FLAVOURS, apart
    from toonstream.export.networks.base import random_inputs
    from toonstream.export.shapes import declared_inputs

    name, _ = apart(engine_name(options.engine or "auto"))
    tell = _Teller()
    # Torch needs no files, and what it is compared with does.
    model, envelope = _open(options, "onnxruntime" if name == "torch" else name, tell)
    engine = (
        _tensorrt(name, model, options, envelope, tell) if name in FLAVOURS else open_engine(name, say=tell)
    )
    tolerance = options.tolerance or _TOLERANCES.get(getattr(engine, "precision", ""), TOLERANCE)
    passed = True
    for source in _networks(model, options):
        network = engine.load(source)
        tell.end()
        sizes = {axis: triple.opt[0] for axis, triple in envelope.axes(source.name).items()}
        inputs = random_inputs(declared_inputs(_exported(source)), sizes)
        for difference in against_onnxruntime(source, network, inputs, tolerance=tolerance):
            verdict = "ok" if difference.passed else "DIFFERS"
            print(f"{source.name:22} {difference.output:16} {difference.error:.1e}  {verdict}", flush=True)
            passed = passed and difference.passed
    print(f"{engine.name} against onnxruntime: {'within' if passed else 'NOT within'} {tolerance:g}")
    return 0 if passed else 1


def _prune(options: argparse.Namespace) -> int:
    from toonstream.engines.store import EngineStore, to_prune

    limits = (options.older_than, options.unused, options.keep)
    if not options.all and limits == (None, None, None):
        raise SettingError("say what to throw away: --older-than, --unused, --keep or --all")
    store = EngineStore()
    gone = to_prune(
        store.engines(),
        now=time.time(),
        older_than=None if options.older_than is None else options.older_than * _DAY,
        unused_for=None if options.unused is None else options.unused * _DAY,
        keep_bytes=0 if options.all else None if options.keep is None else int(options.keep * _GB),
    )
    freed = store.sweep()
    for engine in gone:
        if store.remove(engine):
            freed += engine.size
            print(f"{engine.digest[:12]}  {engine.label}")
    print(f"freed {freed / 1e6:.1f} MB in {store.folder}")
    return 0


def _open(options: argparse.Namespace, engine: str, say: Callable[[str], None]) -> tuple["Model", "Envelope"]:
    """Give the model, with those networks that a stream of these settings runs, and what it asks of them.

    The stream itself says what that is.
    """
    from toonstream.export.assemble import load_model
    from toonstream.export.reference import with_reference
    from toonstream.stream.live.settings import LiveSettings
    from toonstream.stream.serving import live_envelope, stream_envelope

    if options.model is None:
        raise SettingError("name a model, such as toonlet; see toonstream engines --help")
    asked = Settings(
        steps=options.steps,
        window=options.window,
        stride=options.stride,
        mode=options.mode,
        remember=options.remember,
        reference=_ANY_PICTURE if options.reference else None,
    )
    model = load_model(options.model, engine=engine, say=say)
    guidance = max(_GUIDED, model.defaults.guidance) if options.guided else None
    if options.live:
        live = LiveSettings(
            steps=asked.steps,
            window=asked.window,
            stride=asked.stride,
            mode=asked.mode,
            guidance=guidance,
            remember=options.remember or 0,
            reference=asked.reference,
        )
        size = live.size if options.size is None else Size.parse(options.size)
        envelope = live_envelope(model, replace(live, size=size))
    else:
        chosen = replace(asked, guidance=guidance).resolve(model.defaults)
        size = Size.parse(options.size or _SIZE)
        envelope = stream_envelope(model, chosen, size=size.exact or (size.short, size.short))
    if asked.remember or asked.reference is not None:
        model = with_reference(model, engine=engine, say=say)
        kept = {name: source for name, source in model.sources.items() if name != "unet"}
        model = replace(model, sources=kept)
    return model, envelope


def _networks(model: "Model", options: argparse.Namespace) -> list["NetworkSource"]:
    if options.networks is None:
        return list(model.sources.values())
    names = options.networks.split(",")
    for name in names:
        if name not in model.sources:
            known = ", ".join(model.sources)
            raise SettingError(f"{model.defaults.name} has no network {name!r}; it has {known}")
    return [model.sources[name] for name in names]


def _tensorrt(
    name: str, model: "Model", options: argparse.Namespace, envelope: "Envelope", say: Callable[[str], None]
) -> "TensorRtEngine":
    from toonstream.engines.store import EngineStore
    from toonstream.engines.tensorrt.engine import TensorRtEngine
    from toonstream.stream.serving import envelope_shapes

    return TensorRtEngine(
        name,
        shapes=envelope_shapes(envelope),
        store=EngineStore(),
        capability=options.compute_capability,
        model=model.defaults.name,
        say=say,
        timeout=options.timeout,
    )


def _exported(source: "NetworkSource") -> Path:
    from toonstream.engines.onnx_file import onnx_file

    return onnx_file(source)


class _Teller:
    """Shows a build's progress on standard error: over itself on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._shown = False

    def __call__(self, line: str) -> None:
        progress = bool(re.search(r" \d+/\d+$", line))
        if progress and not self._terminal and time.monotonic() - self._last < _LINE_SECONDS:
            return
        self._last = time.monotonic()
        if self._terminal and progress:
            sys.stderr.write(f"\r{line[:78]:78}")
            self._shown = True
        else:
            self.end()
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Clear what stands on the terminal."""
        if self._shown:
            sys.stderr.write("\r" + " " * 78 + "\r")
            self._shown = False
