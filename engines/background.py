"""Networks that are replaced while a stream runs: prepared in the background, taken over between two windows.

    serving = SwitchableEngine(TorchEngine(), say=print)
    stylizer = load_stylizer(model, settings, engine=serving, …)    # the stream runs on torch at once
    serving.replace(engine=TensorRtEngine(…))                       # builds, loads, warms up, takes over
    serving.replace(sources={"unet": replace_weights(unet, lora)})  # another style, the same way

What is replaced together takes over together. For a few windows both run, and what they give is blended, so
that no frame shows a step. When something fails, what serves goes on serving. Where there is a judge, what is
to take over is first held against what serves, on what that was given last.

A second source of a name, such as the UNet with a LoRA for one viewer of several, runs beside the first for
as long as somebody holds it. Another engine takes over from both.
"""

import atexit
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from toonstream.engines.engine import Engine, Network, NetworkSource, Stoppable, TensorSpec
from toonstream.errors import EngineError

__all__ = ["Judge", "SwitchableEngine", "SwitchableNetwork"]

BLENDED_WINDOWS = 4  # in which the old and the new network both run
_POLL_SECONDS = 0.1  # between two looks at whether a network has been called

Judge = Callable[[NetworkSource, Network, Network, Mapping[str, Tensor]], None]
"""Told of a network, of the one that serves, of the one that is to take over, and of inputs for both; it
raises an `EngineError` where that may not be."""

_Networks = Mapping["SwitchableNetwork", Network]  # what takes over from what


class SwitchableNetwork:
    """A network that another one can take the place of, between two calls.

    Args:
        network: what serves first.

    Attributes:
        given: inputs of the last call, while it is watched; else None.
    """

    def __init__(self, network: Network) -> None:
        # The network, the one that is coming, and its share in what is given out; a call reads them at once.
        self._running: tuple[Network, Network | None, float] = network, None, 0.0
        self._called_with: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._turn = threading.Lock()  # on what runs while it is watched: a judge has it run, too
        self._watched = False
        self.given: Mapping[str, Tensor] | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As declared by the network that serves."""
        return self._running[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As declared by the network that serves."""
        return self._running[0].outputs

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; while the next network is taking over, both run."""
        if not self._watched:
            return self._run(tensors)
        with self._turn:
            if self._watched:
                self.given = dict(tensors)
            return self._run(tensors)

    def _run(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._called_with = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        network, coming, share = self._running
        made = network(tensors)
        if coming is None:
            return made
        new = coming(tensors)
        return {name: torch.lerp(old, new[name].to(old), share) for name, old in made.items()}

    def blend(self, network: Network, share: float) -> None:
        """Let another network have a share, above 0, in what is given out; at 1 it takes over."""
        self._running = (network, None, 0.0) if share >= 1.0 else (self._running[0], network, share)

    def watch(self) -> None:
        """Keep what it is given last from now on, for a judge."""
        self._watched = True

    def watch_no_more(self) -> None:
        """Let go of it."""
        with self._turn:
            self._watched, self.given = False, None

    def warm_up(self, network: Network) -> None:
        """Call another network with the shapes of the last call, so that its first one will be quick."""
        if self._called_with:
            network(
                {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self._called_with.items()}
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Order:
    """What the background thread is asked for; None leaves it as it is."""

    engine: Engine | None
    sources: Mapping[str, NetworkSource]
    judged: bool = False


class SwitchableEngine:
    """An engine whose networks can be replaced while they run.

    Args:
        engine: what serves first.
        successor: what is to take over as soon as it is ready; it is prepared from the first boundary on.
        judge: has a say in whether the successor may; it waits until every network has been called.
        blended_windows: how many windows both the old and the new networks run for; 0 switches at once.
        say: is told, from the background thread, what becomes of a replacement.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        successor: Engine | None = None,
        judge: Judge | None = None,
        blended_windows: int = BLENDED_WINDOWS,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._engine = engine
        self._successor = successor
        self._judge = judge
        self._asked = [engine]
        self._blended_windows = blended_windows
        self._say = say
        self._networks: dict[str, SwitchableNetwork] = {}
        self._sources: WeakKeyDictionary[SwitchableNetwork, NetworkSource] = WeakKeyDictionary()
        self._table = threading.Lock()  # on the sources, and on which engine serves
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ready: queue.SimpleQueue[_Networks] = queue.SimpleQueue()
        self._coming: _Networks = {}
        self._windows = 0  # that the coming networks have been blended in for
        self._closing = threading.Event()
        self._lock = threading.Lock()  # on a boundary: sessions that share networks have each their own

    @property
    def name(self) -> str:
        """Of the engine that was asked for last and came to serve, or of the first."""
        return self._engine.name

    @property
    def per_shape(self) -> bool:
        """Of any engine that serves or may come to."""
        coming = [] if self._successor is None else [self._successor]
        return any(engine.per_shape for engine in (*self._asked, *coming))

    def load(self, source: NetworkSource) -> SwitchableNetwork:
        """Load a network that can be replaced; from any thread.

        Raises:
            EngineError: the engine that serves refuses it.
        """
        while True:
            engine = self._engine
            network = SwitchableNetwork(engine.load(source))
            with self._table:
                if self._engine is engine:
                    if self._judge is not None:
                        network.watch()
                    self._sources[network] = source
                    self._networks.setdefault(source.name, network)
                    return network

    def replace(
        self, *, engine: Engine | None = None, sources: Mapping[str, NetworkSource] | None = None
    ) -> None:
        """Prepare other networks in the background, and let them take over when they are ready.

        Args:
            engine: what runs all networks from then on; None keeps the engine.
            sources: what takes the place of some of the sources, by name (of the first of each name); None
                keeps them.

        Raises:
            EngineError: a source has the name of no network that was loaded.
        """
        unknown = sorted((sources or {}).keys() - self._networks.keys())
        if unknown:
            raise EngineError(f"no network {unknown[0]} is running; load it first")
        self._order(_Order(engine=engine, sources=sources or {}))

    def _order(self, order: _Order) -> None:
        if order.engine is not None:
            self._asked.append(order.engine)
        if self._thread is None:
            self._thread = threading.Thread(target=self._prepare, name="engine takeover", daemon=True)
            self._thread.start()
            atexit.register(self.close)  # before the interpreter goes, and what it needs
        self._orders.put(order)

    def boundary(self) -> None:
        """Between two windows: let what is ready take over, a little more at each call."""
        with self._lock:
            if self._successor is not None:
                successor, self._successor = self._successor, None
                self._order(_Order(engine=successor, sources={}, judged=self._judge is not None))
            if not self._coming:
                try:
                    self._coming = self._ready.get_nowait()
                except queue.Empty:
                    return
                self._windows = 0
            self._windows += 1
            share = self._windows / (self._blended_windows + 1)
            for network, coming in self._coming.items():
                network.blend(coming, share)
            if share >= 1.0:
                self._coming = {}

    def settle(self) -> None:
        """Wait until everything asked for is ready, or has failed; it takes over at the next boundaries."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Stop preparing; a build that is under way is given up. What serves goes on serving."""
        self._closing.set()
        for engine in self._asked:
            if isinstance(engine, Stoppable):
                engine.close()
        self.settle()
        atexit.unregister(self.close)

    def _prepare(self) -> None:
        """Do what is asked for, order by order, on the background thread."""
        while (order := self._orders.get()) is not None:
            try:
                self._do(order)
            except Exception as error:  # noqa: BLE001 - whatever it is, what serves must go on serving
                if not self._closing.is_set():
                    self._say(f"the old networks go on: {error}")
            if order.judged:
                with self._table:
                    self._judge = None
                    for network in self._sources:
                        network.watch_no_more()

    def _do(self, order: _Order) -> None:
        engine = order.engine or self._engine
        replaced = {self._networks[name]: source for name, source in order.sources.items()}
        made: dict[SwitchableNetwork, Network] = {}
        while True:
            with self._table:
                sources = {**self._sources, **replaced} if order.engine is not None else replaced
                left = [network for network in sources if network not in made]
                if not left:  # and none is loaded on the old engine any more
                    self._engine = engine
                    self._sources.update(replaced)
                    break
            for network in left:
                if self._closing.is_set():
                    raise EngineError(f"{engine.name} was stopped")
                made[network] = engine.load(sources[network])
                if order.judged:
                    self._hold_against(network, made[network], sources[network])
                network.warm_up(made[network])
        self._ready.put(made)
        self._say(f"{engine.name} takes over")

    def _hold_against(self, network: SwitchableNetwork, coming: Network, source: NetworkSource) -> None:
        """Let the judge have its say on a network, on what the one that serves was given last."""
        assert self._judge is not None
        while (given := network.given) is None:
            if self._closing.wait(_POLL_SECONDS):
                raise EngineError(f"{source.name} was not called")
        self._judge(source, network, coming, given)
