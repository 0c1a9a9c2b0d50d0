"""Counters and summaries for one thread: the event loop's; as `service.histogram`, which says why.

prometheus_client's own take a lock for each event, about a microsecond, and a prediction is counted in six. Here an
event is an addition. Counted and collected in one thread. It knows nothing of what is counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector


class Tally:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Count one event."""
        self.value += 1


class Total:
    """One series of a summary: how many values there were, and their sum."""

    __slots__ = ("count", "sum")

    def __init__(self) -> None:
        self.count, self.sum = 0, 0.0

    def observe(self, value: float) -> None:
        """Take in one value."""
        self.count += 1
        self.sum += value


Series = TypeVar("Series", Tally, Total)


class _Labelled(Collector, Generic[Series]):
    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        new: Callable[[], Series],
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._new: Callable[[], Series] = new
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: object) -> Series:
        """Return the series of these labels; whoever counts often keeps it."""
        key = tuple(str(value) for value in values)
        if key not in self._series:
            self._series[key] = self._new()
        return self._series[key]

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Remove all series that bear these labels, whatever their others are; as prometheus_client's."""
        wanted = {self._labels.index(name): value for name, value in labels.items()}
        self._series = {
            key: series
            for key, series in self._series.items()
            if any(key[place] != value for place, value in wanted.items())
        }


class LoopCounter(_Labelled[Tally]):
    """A counter with labels.

    >>> registry = CollectorRegistry()
    >>> steps = LoopCounter("steps_total", "Steps taken.", ["foot"], registry)
    >>> steps.labels("left").inc()
    >>> registry.get_sample_value("steps_total", {"foot": "left"})
    1.0
    >>> steps.remove_by_labels({"foot": "left"})
    >>> registry.get_sample_value("steps_total", {"foot": "left"})
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        super().__init__(name, documentation, labels, registry, Tally)

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the metric as it stands."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, series in list(self._series.items()):  # policies are read in another thread
            family.add_metric(values, float(series.value))
        yield family


class LoopSummary(_Labelled[Total]):
    """A summary with labels: count and sum.

    >>> registry = CollectorRegistry()
    >>> LoopSummary("stride_metres", "How long steps are.", ["foot"], registry).labels("left").observe(0.5)
    >>> registry.get_sample_value("stride_metres_sum", {"foot": "left"})
    0.5
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        super().__init__(name, documentation, labels, registry, Total)

    def collect(self) -> Iterable[SummaryMetricFamily]:
        """Return the metric as it stands."""
        family = SummaryMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, series in list(self._series.items()):  # policies are read in another thread
            family.add_metric(values, series.count, series.sum)
        yield family
