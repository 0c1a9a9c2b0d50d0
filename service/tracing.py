"""A span for each request, sent to an OpenTelemetry collector. Needs `evenkeel[telemetry]`; loaded only if asked for.

What is sampled, how spans are batched and which headers go to the collector is for OpenTelemetry's own environment
variables (OTEL_*) to say. It knows no route.
"""

import logging
import threading
import time
from importlib.metadata import version
from typing import Any

from service.telemetry import Exchange, Times, Trace

logger = logging.getLogger(__name__)


class TracingUnavailable(Exception):  # noqa: N818 - as all domain errors here
    """Spans were asked for, and OpenTelemetry is not installed."""


class Tracing:
    """Makes spans.

    Args:
        endpoint: the collector's address for OTLP over HTTP, such as http://collector:4318/v1/traces.
        exporter: where finished spans go instead, for tests.

    Raises:
        TracingUnavailable: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, exporter: Any = None) -> None:  # noqa: ANN401 - the type may not be installed
        try:
            from opentelemetry import trace  # noqa: PLC0415 - only where it is asked for
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise TracingUnavailable(
                f"EVENKEEL_OTLP_ENDPOINT is set, and OpenTelemetry is not installed ({error}); "
                "install evenkeel[service,telemetry], or unset it"
            ) from error
        self._api = trace
        resource = Resource.create({"service.name": "evenkeel", "service.version": version("evenkeel")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("evenkeel")

    def begin(self, exchange: Exchange, method: str) -> Any:  # noqa: ANN401 - as above
        """Start the span of a request, within the caller's trace if there is one; the exchange then names it."""
        span = self._tracer.start_span(method, context=self._parent(exchange.trace), kind=self._api.SpanKind.SERVER)
        context, parent = span.get_span_context(), exchange.trace.parent_id if exchange.trace else ""
        trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        exchange.trace = Trace(trace_id, parent, span_id, f"{context.trace_flags:02x}")
        return span

    def end(self, span: Any, exchange: Exchange, method: str, route: str, status: int) -> None:  # noqa: ANN401
        """End it, with its stages as spans within it."""
        span.update_name(f"{method} {route}")
        span.set_attribute("http.request.method", method)
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("evenkeel.request_id", exchange.request_id)
        if status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        if exchange.times is not None:
            self._stages(span, exchange.times)
        span.end()

    def _stages(self, span: Any, times: Times) -> None:  # noqa: ANN401
        """Add the stages, which follow each other up to now."""
        within = self._api.set_span_in_context(span)
        end = time.time_ns()
        for name, seconds in (("inference", times.inference), ("queue", times.queue), ("decode", times.decode)):
            start = end - round(seconds * 1e9)
            self._tracer.start_span(name, context=within, start_time=start).end(end)
            end = start

    def _parent(self, trace: Trace | None) -> Any:  # noqa: ANN401
        if trace is None:
            return None
        api = self._api
        parent = api.SpanContext(
            int(trace.trace_id, 16), int(trace.parent_id, 16), True, api.TraceFlags(int(trace.flags, 16))
        )
        return api.set_span_in_context(api.NonRecordingSpan(parent))

    def close(self, timeout: float) -> None:
        """Send what waits, and stop; what the collector has not taken after so many seconds is lost, and logged."""
        closing = threading.Thread(target=self._provider.shutdown, name="closing tracing", daemon=True)
        closing.start()
        closing.join(timeout)
        if closing.is_alive():
            logger.error("the collector has not taken the last spans in %g s: they are lost", timeout)
