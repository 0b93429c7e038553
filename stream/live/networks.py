"""Networks that several sessions share: loaded once, run in turns, keeping nothing of any session."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from toonstream.config import LoraChoice, RenderSettings
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import Engine, Network, NetworkAround, NetworkSource, Preparing
from toonstream.errors import EngineError, InputError, ToonstreamError
from toonstream.export.checkpoints import Model
from toonstream.export.loras import lora_sources
from toonstream.export.shapes import Envelope
from toonstream.export.tokenizer import PromptEncoder, PromptTokenizer
from toonstream.stream.clock import Clock, monotonic
from toonstream.stream.frame import Frame
from toonstream.stream.live.controller import ladder
from toonstream.stream.live.core import wished
from toonstream.stream.live.fading import Fade, FadedNetwork
from toonstream.stream.live.segment import StylizerSegment
from toonstream.stream.live.settings import LiveSettings, Plan
from toonstream.stream.live.studio import Observe, Run
from toonstream.stream.live.switching import Pushed
from toonstream.stream.live.turns import Turns
from toonstream.stream.live.words import Words
from toonstream.stream.sizes import padded_size
from toonstream.stream.temporal.attending import Attending

__all__ = ["SharedNetworks", "TakingTurns", "Variant"]


_PREPARING_STRIDES = 2  # after the first window: a first run builds, a second tells what it takes
_KEPT_VARIANTS = 4  # that are kept ready, the latest asked for; those in use stay besides

Shapes = tuple[tuple[int, ...], ...]
Seen = dict[tuple[str, Shapes], Mapping[str, tuple[torch.Size, torch.dtype]]]  # by name of the input
Loras = tuple[LoraChoice, ...]
Built = tuple[tuple[int, int], int, int, bool]  # padded size, window, stride, guided


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """What LoRAs change, with some of them put in.

    Attributes:
        loras: which, by name.
        unet: with them.
        encode: reads prompts with them.
        seen: what the UNet has been run with, see `TakingTurns`.
    """

    loras: Loras
    unet: Network
    encode: PromptEncoder
    seen: Seen = field(default_factory=dict)


class TakingTurns(NetworkAround):
    """A shared network as one session sees it.

    Args:
        network: what is run.
        name: of it.
        turns: shared by all networks of all sessions.
        seen: what each network has been run with, shared likewise; changed within turns only.
        clock: gives the time.
        observe: told of every run, on the calling thread.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        *,
        turns: Turns,
        seen: Seen,
        clock: Clock,
        observe: Callable[[Run], None],
    ) -> None:
        super().__init__(network)
        self._name = name
        self._turns = turns
        self._seen = seen
        self._clock = clock
        self._observe = observe

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Wait for a turn and run once."""
        key = self._name, tuple(tuple(tensor.shape) for tensor in tensors.values())
        first = key not in self._seen
        if first and isinstance(self._network, Preparing):
            self._network.prepare(tensors)
        asked = self._clock()
        with self._turns.turn():
            began = self._clock()
            made = self._network(tensors)
            ended = self._clock()
            if first:
                self._seen[key] = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        shape = next(iter(tensors.values())).shape
        frames = shape[0] * shape[1] if len(shape) == 5 else shape[0]
        self._observe(
            Run(stage=self._name, frames=frames, seconds=ended - began, waited=began - asked, first=first)
        )
        return made


class SharedNetworks:
    """A model's networks for any number of sessions.

    All texts have one length, that of the model's own prompts and of those that streams begin with: another
    would be another shape, for which an engine may have to be built in the middle of a stream.

    Args:
        model: where they come from.
        networks: all of the model's, by name, loaded.
        tokenizer: reads prompts.
        boundary: called between two windows, where networks may be replaced.
        load: loads other forms of the model's networks; needed where there are LoRAs.
        loras: files of those that viewers may ask for, by name.
        limits: of the shapes that the networks can be called with; None where there are none.
        chunks: of 75 tokens that prompts may fill; as many as the model's own, if they fill more.
        attending: what the frames of every session attend to, besides those of their window; the networks'
            `unet` is then the model's `unet_reference`.
        clock: gives the time.

    Raises:
        InputError: the model's own prompts are too long for it.
    """

    def __init__(
        self,
        model: Model,
        networks: Mapping[str, Network],
        tokenizer: PromptTokenizer,
        *,
        boundary: Callable[[], None] = lambda: None,
        load: Callable[[NetworkSource], Network] | None = None,
        loras: Mapping[str, Path] | None = None,
        limits: Envelope | None = None,
        chunks: int = 1,
        attending: Attending | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.model = model
        self._networks = networks
        self._tokenizer = tokenizer
        self._boundary = boundary
        self._load = load
        self._loras = dict(loras or {})
        self._limits = limits
        self._attending = attending
        self._clock = clock
        self._turns = Turns()
        self._seen: Seen = {}
        self._plain = Variant(
            loras=(),
            unet=networks["unet"],
            encode=PromptEncoder(networks["text_encoder"], tokenizer, readers=networks.values()),
            seen=self._seen,
        )
        self._variants: OrderedDict[Loras, Future[Variant]] = OrderedDict()
        self._in_use: WeakSet[Variant] = WeakSet()
        own = (model.defaults.prompt, model.defaults.negative_prompt)
        self._chunks = max(chunks, *(len(tokenizer(prompt).ids) for prompt in own))
        self._lock = threading.Lock()
        self._ready: set[Built] = set()
        self._requested: set[Built] = set()
        self._refused: dict[Built, str] = {}
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="toonstream-prepare")

    @classmethod
    def load(
        cls,
        model: Model,
        engine: Engine,
        *,
        loras: Mapping[str, Path] | None = None,
        limits: Envelope | None = None,
        chunks: int = 1,
        attending: Attending | None = None,
        clock: Clock = monotonic,
    ) -> "SharedNetworks":
        """Load what a stream of the model needs; see the class for what else there is.

        Raises:
            ModelError: the model has no network for something it asks for.
            EngineError: the engine refuses a network.
        """
        names = ["text_encoder", "vae_decoder"]
        if attending is not None and attending.picture is not None:
            names.append("vae_encoder")
        for controlnet in model.defaults.controlnets:
            names += [f"hint_{controlnet}", f"controlnet_{controlnet}"]
            names += [f"annotator_{controlnet}"] if controlnet in model.annotators else []
        unet = model.sources["unet" if attending is None else "unet_reference"]
        return cls(
            model,
            {"unet": engine.load(unet), **{name: engine.load(model.sources[name]) for name in names}},
            PromptTokenizer(model.tokenizer_path, model.embeddings),
            boundary=engine.boundary if isinstance(engine, SwitchableEngine) else lambda: None,
            load=engine.load,
            loras=loras,
            limits=limits,
            chunks=chunks,
            attending=attending,
            clock=clock,
        )

    @property
    def loras(self) -> tuple[str, ...]:
        """Names of the LoRAs that viewers may ask for."""
        return tuple(self._loras)

    def check(self, settings: LiveSettings) -> RenderSettings:
        """Fill in what was left open and see that the model can do it; quick.

        Raises:
            InputError: the model has no such style, there is no such LoRA, a prompt is too long, or the
                numbers do not fit.
        """
        chosen = settings.resolve(self.model.defaults)
        self.model.require_window(chosen.window)
        if self._limits is not None and chosen.window > self._limits.most_frames:
            raise InputError(
                f"window {chosen.window}: the engines here take at most {self._limits.most_frames} frames"
            )
        for lora in chosen.loras:
            self._require_lora(lora.file)
        for prompt in (chosen.prompt, chosen.negative_prompt):
            if len(self._tokenizer(prompt).ids) > self._chunks:
                raise InputError(f"the prompt has more than {75 * self._chunks} tokens; shorten it")
        return chosen

    def words(self, settings: RenderSettings, variant: Variant | None = None) -> Words:
        """What frames under these settings are to look like; runs the text encoder, in turn.

        Args:
            settings: what is asked for.
            variant: whose text encoder reads it; None for the model's own.

        Raises:
            InputError: a prompt is too long.
        """
        return self._said(settings.prompt, settings.negative_prompt, settings.seed, variant=variant)

    @property
    def plain(self) -> Variant:
        """The model as it is."""
        return self._plain

    def variant(self, loras: Loras) -> Variant | None:
        """Give the model with LoRAs put in, ready to run; None while it is made ready, on another thread.

        Raises:
            ToonstreamError: it cannot be made.
        """
        if not loras:
            return self._plain
        with self._lock:
            made = self._variants.get(loras)
            if made is None:
                self._variants[loras] = self._preparer.submit(self._make_variant, loras)
                if len(self._variants) > _KEPT_VARIANTS:
                    self._variants.popitem(last=False)[1].cancel()
                return None
            self._variants.move_to_end(loras)
        return made.result() if made.done() else None

    def _require_lora(self, name: str) -> None:
        if name in self._loras:
            return
        near = get_close_matches(name, self._loras, n=2, cutoff=0.5)
        known = ", ".join(self._loras) or "none"
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {known}"
        raise InputError(f"there is no LoRA {name[:40]!r} here; {hint}")

    def _make_variant(self, loras: Loras) -> Variant:
        """Load the networks that LoRAs change, and run or build them for what the model was run with."""
        assert self._load is not None
        try:
            files = [replace(lora, file=str(self._loras[lora.file])) for lora in loras]
            sources = lora_sources(self.model, files)
            if self._attending is not None and "unet" in sources:
                attends = self.model.sources["unet_reference"]
                sources["unet"] = replace(attends, weights=sources["unet"].weights)
            changed = {name: self._load(source) for name, source in sources.items()}
            encoder = changed.get("text_encoder")
            variant = Variant(
                loras=loras,
                unet=changed.get("unet", self._plain.unet),
                encode=self._plain.encode
                if encoder is None
                else PromptEncoder(encoder, self._tokenizer, readers=self._networks.values()),
                seen={} if "unet" in changed else self._seen,
            )
            self._in_use.add(variant)
            self._warm_up(variant)
        except ToonstreamError:
            raise
        except Exception as error:  # whatever it is, what runs must go on
            raise EngineError(f"{type(error).__name__}: {error}") from error
        return variant

    def _warm_up(self, variant: Variant) -> None:
        """Build or run a variant's UNet for all shapes that the model's own was run with."""
        for key, called in list(self._seen.items()):
            if key[0] != "unet" or key in variant.seen:
                continue
            tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in called.items()}
            if isinstance(variant.unet, Preparing):
                variant.unet.prepare(tensors)
            with self._turns.turn():
                if not isinstance(variant.unet, Preparing):
                    variant.unet(tensors)
                variant.seen[key] = called

    @property
    def multiple(self) -> int:
        """Sides that are multiples of this many pixels are drawn without waste."""
        return self.model.size_multiple

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Give the largest size of that shape that the engines here are made for; toons are enlarged."""
        if self._limits is None:
            return size
        largest = self._limits.largest or self._limits.size
        scale = min(most / side for most, side in zip(largest, size, strict=True))
        if scale >= 1.0:
            return size
        width, height = (max(1, int(side * scale)) for side in size)
        return width, height

    def segment(
        self,
        plan: Plan,
        words: Words,
        *,
        size: tuple[int, int],
        observe: Observe,
        fade: Fade[Variant] | None = None,
        gives_up: Callable[[Frame], bool] = lambda frame: False,
    ) -> StylizerSegment:
        """Start a stream that gives toons of `size`.

        Args:
            plan: what is run.
            words: of the first frame.
            size: (width, height) of the toons.
            observe: is told of every run in it, on its thread.
            fade: what it is drawn with, as that changes; None is the model as it is.
            gives_up: asked of every frame that is final whether it need not be decoded any more.
        """

        def told(run: Run) -> None:
            observe(plan, run)

        def mine(network: Network, name: str, seen: Seen) -> TakingTurns:
            return TakingTurns(network, name, turns=self._turns, seen=seen, clock=self._clock, observe=told)

        def form(variant: Variant) -> Network:
            return mine(variant.unet, "unet", variant.seen)

        networks: dict[str, Network] = {
            name: mine(network, name, self._seen)
            for name, network in self._networks.items()
            if name != "text_encoder"
        }
        networks["unet"] = FadedNetwork(fade or Fade(self._plain), form)
        return StylizerSegment(
            self.model,
            networks,
            plan,
            words,
            size=size,
            boundary=self._boundary,
            clock=self._clock,
            conditions_took=lambda seconds: told(Run(stage="conditions", frames=1, seconds=seconds)),
            gives_up=gives_up,
            attending=self._attending,
        )

    def is_ready(self, plan: Plan) -> bool:
        """Whether every network has been run with the shapes that the plan has."""
        return self._built(plan) in self._ready

    def prepare(self, plan: Plan, *, observe: Observe = lambda plan, run: None) -> None:
        """Run the plan on a few black frames: engines are built, and `observe` is told what runs take.

        Raises:
            EngineError: the engine refuses a network or its shapes.
        """
        self._require_within_limits(plan)
        width, height = plan.size
        black = np.zeros((height, width, 3), np.uint8)
        defaults = self.model.defaults
        words = self._said(defaults.prompt, defaults.negative_prompt)
        segment = self.segment(plan, words, size=plan.size, observe=observe)
        for index in range(plan.window + _PREPARING_STRIDES * plan.stride):
            frame = Frame(index=index, pts=index, time_base=Fraction(1, 30), image=black)
            for _ in segment.push(Pushed(frame=frame, words=words)):
                pass
        for _ in segment.finish():
            pass
        for variant in list(self._in_use):
            self._warm_up(variant)
        self._ready.add(self._built(plan))

    def request(self, plan: Plan) -> str | None:
        """Prepare a plan on another thread, unless another is being prepared; say why where that has failed.

        What takes the cores from what runs is done for one plan at a time. Whoever still wants another
        afterwards asks again.
        """
        built = self._built(plan)
        with self._lock:
            if built in self._requested:
                return self._refused.get(built)
            if any(each not in self._ready and each not in self._refused for each in self._requested):
                return None
            self._requested.add(built)
        self._preparer.submit(self._try_to_prepare, plan)
        return None

    def warm_up(self, settings: LiveSettings, source: tuple[int, int]) -> None:
        """Prepare what a source of this (width, height) may be drawn under, before anyone waits for it.

        With a promise, these are the sizes that give way, and the least of all; what lies between is built
        when it is needed.

        Raises:
            InputError: the settings cannot be met.
            EngineError: the engine refuses a network or its shapes.
        """
        wish = wished(self.check(settings), self.fitted(settings.size.of(*source)))
        plans = [wish]
        if settings.latency is not None:
            whole = list(ladder(wish, multiple=self.multiple))
            plans = [plan for plan in whole if replace(plan, size=wish.size) == wish] + whole[-1:]
        for plan in plans:
            if not self.is_ready(plan):
                self.prepare(plan)

    def close(self) -> None:
        """Prepare no more; what sessions run still runs."""
        self._preparer.shutdown(wait=False, cancel_futures=True)

    def _try_to_prepare(self, plan: Plan) -> None:
        try:
            self.prepare(plan)
        except Exception as error:  # noqa: BLE001  whatever it is, what runs must go on
            self._refused[self._built(plan)] = str(error) or type(error).__name__

    def _require_within_limits(self, plan: Plan) -> None:
        size = padded_size(plan.size, self.model.size_multiple)
        if self._limits is not None and not self._limits.covers(size=size, window=plan.window):
            raise EngineError(
                f"{plan}: the engines here are not made for that; end this, and begin with "
                f"--size {plan.size[0]}x{plan.size[1]}"
            )

    def _built(self, plan: Plan) -> Built:
        size = padded_size(plan.size, self.model.size_multiple)
        return size, plan.window, plan.stride, plan.guidance != 1.0

    def _said(self, prompt: str, negative: str, seed: int = 0, *, variant: Variant | None = None) -> Words:
        encode = (variant or self._plain).encode
        with self._turns.turn():
            text, without = encode(prompt, negative, chunks=self._chunks)
        return Words(text=text, negative=without, seed=seed)
