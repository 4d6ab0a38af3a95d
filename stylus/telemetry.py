"""What an operator sees of the work: a span (OpenTelemetry) and a time (Prometheus) for each stage, never a prompt.

Spans go nowhere unless an SDK is set up: by `exported`, or by whoever embeds Stylus. W3C trace context travels with a
job through the queue, so that the rendering on another machine belongs to the trace of the call that asked for it.
Attributes and labels are counts, ids and names of ours; of an exception only its type, since its text may quote.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, start_http_server

from stylus.errors import SettingsError
from stylus.settings import Settings

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("stylus")

# In no registry of their own: whoever serves them (`server.metrics`) registers them.
SECONDS = Histogram(
    "stylus_stage_seconds",
    "Time of a stage of the work in this process.",
    ["stage"],
    registry=None,
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
CACHE_BYTES = Gauge(
    "stylus_adapter_cache_bytes",
    "Adapters that this process holds: attached on the device, and verified files in main memory.",
    ["place"],
    registry=None,
)


@contextmanager
def stage(name: str, carrier: Mapping[str, str] | None = None, **attributes: str | int) -> Iterator[None]:
    """One stage; also a decorator. `carrier` is the `context` of the process that asked for it."""
    parent = propagate.extract(carrier) if carrier else None
    named = {f"stylus.{key}": value for key, value in attributes.items()}
    with (
        SECONDS.labels(name).time(),
        tracer.start_as_current_span(
            f"stylus.{name}", parent, attributes=named, record_exception=False, set_status_on_exception=False
        ) as span,
    ):
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(trace.StatusCode.ERROR)
            raise


def context() -> dict[str, str]:
    """The current trace context in W3C's form, for `stage` in another process; empty without an SDK."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


@contextmanager
def served(host: str, port: int | None) -> Iterator[None]:
    """Within, the times and sizes of this process are at http://host:port/metrics; with no port, nowhere. They tell
    nothing of who asked for the work. Raises SettingsError for an address that can't be bound."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    for collector in (SECONDS, CACHE_BYTES):
        registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(f"Can't serve metrics on {host} port {port}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def exported(settings: Settings) -> Iterator[None]:
    """Within, spans go to the collector that the standard variables OTEL_* name, if they name one."""
    if settings.otlp_endpoint is None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        # these variables are often set for a whole machine: no reason not to start
        logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, and spans go nowhere: pip install 'stylus-adapters[otel]'.")
        yield
        return
    resource = Resource.create({"service.name": "stylus"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def flush() -> None:
    """Sends the spans that wait: for a process that ends without leaving `exported`."""
    if callable(send := getattr(trace.get_tracer_provider(), "force_flush", None)):
        send()  # only the SDK's provider has it
