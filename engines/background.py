"""Networks that are replaced while a stream runs: prepared in the background, taken over between two windows.

    serving = SwitchableEngine(TorchEngine(), say=print)
    stylizer = load_stylizer(model, settings, engine=serving, …)    # the stream runs on torch at once
    serving.replace(engine=TensorRtEngine(…))                       # builds, loads, warms up, takes over
    serving.replace(sources={"unet": replace_weights(unet, lora)})  # another style, the same way

What is replaced together takes over together. For a few windows both run, and what they give is blended, so
that no frame shows a step. When something fails, what serves goes on serving.

A second source of a name, such as the UNet with a LoRA for one viewer of several, runs beside the first for
as long as somebody holds it. Another engine takes over from both.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from toonstream.engines.engine import Engine, Network, NetworkSource, TensorSpec
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.errors import EngineError

__all__ = ["SwitchableEngine", "SwitchableNetwork"]

BLENDED_WINDOWS = 4  # in which the old and the new network both run

_Networks = Mapping["SwitchableNetwork", Network]  # what takes over from what


class SwitchableNetwork:
    """A network that another one can take the place of, between two calls."""

    def __init__(self, network: Network) -> None:
        # The network, the one that is coming, and its share in what is given out; a call reads them at once.
        self._running: tuple[Network, Network | None, float] = network, None, 0.0
        self._called_with: dict[str, tuple[torch.Size, torch.dtype]] = {}

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


class SwitchableEngine:
    """An engine whose networks can be replaced while they run.

    Args:
        engine: what serves first.
        successor: what is to take over as soon as it is ready; it is prepared from the first boundary on.
        blended_windows: how many windows both the old and the new networks run for; 0 switches at once.
        say: is told, from the background thread, what becomes of a replacement.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        successor: Engine | None = None,
        blended_windows: int = BLENDED_WINDOWS,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._engine = engine
        self._successor = successor
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
        if engine is not None:
            self._asked.append(engine)
        if self._thread is None:
            self._thread = threading.Thread(target=self._prepare, name="engine takeover", daemon=True)
            self._thread.start()
        self._orders.put(_Order(engine=engine, sources=sources or {}))

    def boundary(self) -> None:
        """Between two windows: let what is ready take over, a little more at each call."""
        with self._lock:
            if self._successor is not None:
                successor, self._successor = self._successor, None
                self.replace(engine=successor)
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
        for engine in self._asked:
            if isinstance(engine, TensorRtEngine):
                engine.close()
        self.settle()

    def _prepare(self) -> None:
        """Do what is asked for, order by order, on the background thread."""
        while (order := self._orders.get()) is not None:
            try:
                self._do(order)
            except Exception as error:  # noqa: BLE001 - whatever it is, what serves must go on serving
                self._say(f"the old networks go on: {error}")

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
                made[network] = engine.load(sources[network])
                network.warm_up(made[network])
        self._ready.put(made)
        self._say(f"{engine.name} takes over")
