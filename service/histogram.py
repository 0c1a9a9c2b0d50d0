"""A histogram for one thread: the event loop's. Cheap enough to observe several times in every request.

prometheus_client's own takes a lock and walks its buckets for each observation, some microseconds that a request pays
five times. Here an observation is a bisection and an addition; the sums over buckets are made when someone scrapes.
It must be observed and collected in one thread. It knows nothing of what is measured.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class LoopHistogram:
    """One series: how many observations fell at or below each bound, and their sum.

    Args:
        bounds: upper bounds of the buckets, ascending; the last one, infinity, is added.

    Example:
        >>> histogram = LoopHistogram((1.0, 2.0))
        >>> for value in (0.5, 1.0, 7.0):
        ...     histogram.observe(value)
        >>> histogram.cumulative(), histogram.sum
        ([('1.0', 2), ('2.0', 2), ('+Inf', 3)], 8.5)
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return each bound, as Prometheus writes it, with the number of values at or below it."""
        total, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((_bound_label(bound), total))
        return buckets


def _bound_label(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))


class LoopHistograms(Collector):
    """A metric of one or several series that differ in one label.

    Args:
        name, documentation: of the metric.
        bounds: upper bounds of the buckets, ascending.
        registry: where scrapes look.
        label: name of the label; None: one series without one.
        values: the label's values, all known beforehand.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        *,
        label: str | None = None,
        values: Sequence[str] = ("",),
    ) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        # A sum of values that may be negative is no counter, and Prometheus asks that it be left out.
        self._has_sum = bounds[0] >= 0
        self.series = {value: LoopHistogram(bounds) for value in values}
        registry.register(self)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the metric as it stands."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else None)
        for value, histogram in self.series.items():
            labels = [value] if self._label else []
            buckets = histogram.cumulative()
            family.add_metric(labels, buckets, histogram.sum if self._has_sum else None)
            if not self._has_sum:  # then the library leaves out the count too, which an alert rule asks for
                family.add_sample(f"{self._name}_count", {self._label: value} if self._label else {}, buckets[-1][1])
        yield family
