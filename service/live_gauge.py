"""A gauge that is asked for at each scrape: it shows what is known then, and no series where nothing is.

prometheus_client's own keeps every series that it ever had, and shows 0 before it knows better. It knows nothing of
what is measured.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class LiveGauge(Collector):
    """A gauge with one label, whose series are what a function says.

    Args:
        name, documentation: of the metric.
        label: name of the label.
        registry: where scrapes look.

    Example:
        >>> registry = CollectorRegistry()
        >>> gauge = LiveGauge("room_celsius", "How warm it is.", "room", registry)
        >>> registry.get_sample_value("room_celsius", {"room": "hall"})  # nobody has looked yet
        >>> gauge.set_function(lambda: {"hall": 19.5})
        >>> registry.get_sample_value("room_celsius", {"room": "hall"})
        19.5
    """

    def __init__(self, name: str, documentation: str, label: str, registry: CollectorRegistry) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._read: Callable[[], Mapping[str, float]] = dict
        registry.register(self)

    def set_function(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Ask this function from now on: the value of each series by its label."""
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the metric as it stands."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=[self._label])
        for label, value in self._read().items():
            family.add_metric([label], value)
        yield family
