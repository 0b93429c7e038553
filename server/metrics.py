"""What `/metrics` shows."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from toonstream.server.live import Figures

__all__ = ["Metrics"]

_LATENCIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class Metrics:
    """The figures of one server, in a registry of its own.

    Args:
        core_drops: gives what the live cores of all sessions have dropped so far, ended ones included:
            (place, reason) → frames.
        figures: gives how each session does that is there now, by its number.
    """

    def __init__(
        self,
        core_drops: Callable[[], Mapping[tuple[str, str], int]],
        figures: Callable[[], Mapping[int, Figures]],
    ) -> None:
        self.registry = CollectorRegistry()
        self._core_drops = core_drops
        self.registry.register(_Drops(self))
        self.registry.register(_Sessions(figures))
        self._drops: dict[tuple[str, str], int] = {}
        self.sessions = Gauge("toonstream_sessions", "Publishers that are connected", registry=self.registry)
        self.watchers = Gauge("toonstream_watchers", "Watchers that are connected", registry=self.registry)
        self.held = Gauge(
            "toonstream_stages_held",
            "Stages that show the last picture of a publisher who was cut off",
            registry=self.registry,
        )
        self.offers = Counter(
            "toonstream_offers",
            "Offers, by what became of them",
            ("endpoint", "outcome"),
            registry=self.registry,
        )
        self.frames = Counter(
            "toonstream_frames", "Frames captured and frames shown", ("place",), registry=self.registry
        )
        self.latency = Histogram(
            "toonstream_latency_seconds",
            "From capture, as told by its arrival, to the network again",
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "toonstream_loop_lag_seconds", "How late the event loop woke up last", registry=self.registry
        )

    def dropped(self, place: str, reason: str) -> None:
        """Count a frame or packet that was left out; on the event loop."""
        self._drops[place, reason] = self._drops.get((place, reason), 0) + 1

    def drops(self) -> dict[tuple[str, str], int]:
        """(place, reason) → frames left out, here and in the live cores."""
        total = dict(self._drops)
        for key, count in self._core_drops().items():
            total[key] = total.get(key, 0) + count
        return total

    def expose(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)


class _Drops(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Make the family anew, from counts that are kept elsewhere."""
        family = CounterMetricFamily(
            "toonstream_frames_dropped", "Frames left out, by place and reason", labels=("place", "reason")
        )
        for (place, reason), count in sorted(self._metrics.drops().items()):
            family.add_metric((place, reason), count)
        yield family


class _Sessions(Collector):
    """Percentiles of the last seconds of each session that is there."""

    def __init__(self, figures: Callable[[], Mapping[int, Figures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Make the families anew."""
        latency = GaugeMetricFamily(
            "toonstream_session_latency_seconds",
            "From capture to the network again, of the last seconds",
            labels=("session", "quantile"),
        )
        stages = GaugeMetricFamily(
            "toonstream_stage_seconds",
            "What one turn of a stage takes, of the last seconds",
            labels=("session", "stage", "quantile"),
        )
        waits = GaugeMetricFamily(
            "toonstream_queue_age_seconds",
            "How long frames wait in a queue, of the last seconds",
            labels=("session", "queue", "quantile"),
        )
        promise = GaugeMetricFamily(
            "toonstream_promise_seconds", "The latency that is promised", labels=("session",)
        )
        kept = GaugeMetricFamily(
            "toonstream_promise_kept", "Whether the promise is thought to be kept", labels=("session",)
        )
        for number, figures in sorted(self._figures().items()):
            session = str(number)
            _add(latency, (session,), figures.latency)
            for name, parts in sorted(figures.stages.items()):
                _add(stages, (session, name), parts)
            for name, parts in sorted(figures.waits.items()):
                _add(waits, (session, name), parts)
            if figures.promise is not None:
                promise.add_metric((session,), figures.promise)
                kept.add_metric((session,), float(figures.kept))
        yield from (latency, stages, waits, promise, kept)


def _add(family: GaugeMetricFamily, labels: tuple[str, ...], parts: Mapping[str, float]) -> None:
    for part, seconds in parts.items():
        family.add_metric((*labels, f"{int(part[1:]) / 100:g}"), seconds)
