"""The live core as the server wants it: one model for all, one `LiveSession` for each publisher."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from toonstream.config import LoraChoice
from toonstream.export.checkpoints import Model
from toonstream.server.live import Bounds, Catalogue, Change, Deliver, Ended, Live
from toonstream.stream.live.core import LiveToon
from toonstream.stream.live.networks import SharedNetworks
from toonstream.stream.live.session import End, LiveSession
from toonstream.stream.live.settings import LiveSettings
from toonstream.stream.serving import open_live_networks

__all__ = ["Drawing"]

_CAMERA = (640, 480)  # what the page asks cameras for; engines are built for it ahead
_CLOSE_SECONDS = 10.0  # for the network that is running to end


class Drawing:
    """Opens live cores; is an `OpenLive`.

    Args:
        shared: the model's networks.
        model: for its name and its styles.
        settings: what sessions begin with.
        loras: files of LoRAs that viewers may ask for, by name; viewers are told the name only.
    """

    def __init__(
        self,
        shared: SharedNetworks,
        model: Model,
        settings: LiveSettings,
        *,
        loras: Mapping[str, Path] | None = None,
    ) -> None:
        self._shared = shared
        self._settings = settings
        self._model = model
        self._names = {str(path): name for name, path in (loras or {}).items()}

    @classmethod
    def load(
        cls,
        model: Model,
        settings: LiveSettings,
        *,
        engine: str,
        loras: Mapping[str, Path] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> "Drawing":
        """Load the networks and build the engines for a camera's size; takes seconds.

        Args:
            model: where the networks are.
            settings: what sessions begin with.
            engine: what runs them, as `--engine` takes it.
            loras: files of LoRAs that viewers may ask for, by name.
            say: is told how far builds are.

        Raises:
            ToonstreamError: the model or the settings are no use.
        """
        shared = open_live_networks(engine, model, settings, loras=loras, say=say)
        shared.warm_up(settings, _CAMERA)
        return cls(shared, model, settings, loras=loras)

    @property
    def catalogue(self) -> Catalogue:
        """What the page offers."""
        chosen = self._settings.resolve(self._model.defaults)
        latency = self._settings.latency or 0.0
        return Catalogue(
            model=self._model.defaults.name,
            prompt=chosen.prompt,
            styles=self._model.defaults.styles,
            loras=self._shared.loras,
            steps=chosen.steps,
            window=chosen.window,
            latency=latency,
            deflicker=chosen.deflicker != "off",
            bounds=Bounds.around(latency=latency, steps=chosen.steps, window=chosen.window),
        )

    def __call__(self, change: Change, deliver: Deliver, ended: Ended) -> Live:
        """Open one for a new publisher.

        Raises:
            InputError: the settings make no sense.
        """
        bounds = self.catalogue.bounds
        settings = _changed(self._settings, change, bounds)
        return _Drawn(self._shared, settings, deliver, ended, names=self._names, bounds=bounds)


class _Drawn:
    def __init__(
        self,
        shared: SharedNetworks,
        settings: LiveSettings,
        deliver: Deliver,
        ended: Ended,
        *,
        names: Mapping[str, str],
        bounds: Bounds,
    ) -> None:
        self._settings = settings
        self._names = names
        self._bounds = bounds

        def pass_on(toon: LiveToon) -> None:
            deliver(toon.toon, toon.captured_at)

        def tell(end: End) -> None:
            if end.reason == "failed":
                ended(end.message)

        shared.check(settings)
        self._session = LiveSession(shared, settings, deliver=pass_on, ended=tell)
        self.offer = self._session.offer
        self.aged = self._session.note_age

    def change(self, change: Change) -> None:
        """Take other settings."""
        settings = _changed(self._settings, change, self._bounds)
        self._session.change(settings)
        self._settings = settings

    def finish(self) -> None:
        """Deliver what is in flight."""
        self._session.finish()
        self._session.wait()

    def close(self) -> None:
        """Stop."""
        self._session.close()
        self._session.wait(_CLOSE_SECONDS)

    def statistics(self) -> Mapping[str, object]:
        """Its figures."""
        statistics = self._session.statistics()
        dropped: dict[str, dict[str, int]] = defaultdict(dict)
        for drop in statistics.drops:
            dropped[drop.place][drop.reason] = drop.count
        events = [{**asdict(event), "message": self._named(event.message)} for event in statistics.events]
        return {**statistics.facts(), "dropped": dropped, "events": events}

    def _named(self, text: str) -> str:
        """A text for viewers, who need not know where files are."""
        for path, name in self._names.items():
            text = text.replace(path, name)
        return text


def _changed(settings: LiveSettings, change: Change, bounds: Bounds) -> LiveSettings:
    """The settings with what is asked for; a window given alone brings its stride along.

    Raises:
        SettingError: it makes no sense, or is out of bounds.
    """
    bounds.require(change)
    asked = {name: value for name, value in asdict(change).items() if value is not None}
    if "loras" in asked:
        asked["loras"] = tuple(
            LoraChoice(file=name, weight=weight) for name, weight in asked["loras"].items()
        )
    if "style" in asked:
        asked["style"] = asked["style"] or None
    if "deflicker" in asked:
        asked["deflicker"] = "causal" if asked["deflicker"] else "off"
    if "window" in asked:
        asked |= {"stride": None, "overlap": None}
    return replace(settings, **asked)
