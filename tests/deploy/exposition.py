"""The series that the service's /metrics can show, for comparison with those that are asked for elsewhere."""

import re

from service.metrics import Metrics

METRIC = re.compile(r"\bevenkeel_[a-z0-9_]+")
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
    "summary": ("_sum", "_count"),
}


def exposed() -> set[str]:
    """Return the names of all series that /metrics can show."""
    names: set[str] = set()
    for family in Metrics().registry.collect():
        # A family with labels has no series before its first event.
        suffixes = _SUFFIXES.get(family.type, ())
        names |= {sample.name for sample in family.samples} or {family.name + suffix for suffix in suffixes}
    return names
