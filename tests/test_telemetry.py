"""Spans and times of the stages: through the SDK's own exporter, the queue, and a collector on loopback."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stylus import telemetry
from stylus.errors import InvalidInput
from stylus.ingest import ingest_pocket
from stylus.jobs import Jobs
from stylus.settings import Settings
from stylus.stylus import Stylus
from stylus.worker import Worker
from tests.server import world
from tests.server.conftest import Session, _until_it_answers, free_port
from tests.server.test_stdio import HELLO, READY, SLOW, STAR, message, wire
from tests.test_jobs import request, until

PROMPT = "a red star that nobody shall read about"


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """A process has one tracer provider for good; after these tests its spans go nowhere."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    exporter.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def parent(span: ReadableSpan, others: dict[str, ReadableSpan]) -> str | None:
    ids = {other.context.span_id: name for name, other in others.items() if other.context}
    return ids.get(span.parent.span_id) if span.parent else None


def observed(stage: str) -> float:
    [metric] = telemetry.SECONDS.collect()
    counts = [s.value for s in metric.samples if s.name.endswith("_count") and s.labels["stage"] == stage]
    return counts[0] if counts else 0.0


def test_one_trace_holds_the_call_and_every_stage_of_its_rendering_by_a_worker(
    settings: Settings, spans: InMemorySpanExporter
) -> None:
    before = {stage: observed(stage) for stage in ("search", "compose", "load", "generate")}
    with Stylus(settings) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        jobs, stop = Jobs(stylus.database), threading.Event()
        with telemetry.tracer.start_as_current_span("call"):
            job = jobs.submit(stylus.request(stylus.compose(PROMPT), seed=1, steps=2))
        worker = threading.Thread(target=Worker(stylus).run, args=(stop,))
        worker.start()
        assert jobs.wait(job.id, 120).images
        stop.set()
        worker.join()
    found = named(spans)
    tree = {name: parent(span, found) for name, span in found.items()}
    assert tree == {
        "call": None,
        "stylus.compose": "call",
        "stylus.search": "stylus.compose",
        "stylus.job": "call",
        "stylus.generate": "stylus.job",
        "stylus.load_checkpoint": "stylus.generate",
        "stylus.encode": "stylus.generate",
        "stylus.load": "stylus.denoise",
        "stylus.denoise": "stylus.generate",
        "stylus.decode": "stylus.generate",
    }
    assert len({span.context.trace_id for span in found.values() if span.context}) == 1
    assert found["stylus.job"].attributes == {"stylus.job_id": job.id, "stylus.attempt": 1}
    assert not any(PROMPT in span.to_json() for span in found.values())
    assert all(observed(stage) == count + 1 for stage, count in before.items())


def test_what_an_error_says_stays_out_of_its_span(spans: InMemorySpanExporter) -> None:
    with pytest.raises(InvalidInput), telemetry.stage("compose"):
        raise InvalidInput(PROMPT)
    [span] = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes == {"error.type": "InvalidInput"}
    assert PROMPT not in span.to_json()


class Collector:
    """Speaks OTLP over HTTP; `spans` are those that came."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in sent.resource_spans:
                    named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    collector.services.add(named["service.name"])
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.http.shutdown()
    collector.http.server_close()


def test_a_worker_elsewhere_exports_to_the_collector_that_otel_variables_name(
    settings: Settings, database_url: str, tmp_path: Path, spans: InMemorySpanExporter, collector: Collector
) -> None:
    """The queue is all that the two processes share: the trace goes through it."""
    port = collector.http.server_address[1]
    environment = world.environment(database_url, tmp_path, tmp_path / "data") | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_SERVICE_NAME": "gpu-2",
    }
    with Stylus(settings) as stylus:
        jobs = Jobs(stylus.database)
        with telemetry.tracer.start_as_current_span("call") as call:
            job = jobs.submit(request())
        command = [sys.executable, "-m", "tests.server.slow", "1", "worker"]
        with subprocess.Popen(command, env=environment) as worker:
            until(lambda: jobs.get(job.id).status == "done", 60)
            worker.terminate()
            assert worker.wait(30) == 0
    [span] = [span for span in collector.spans if span.name == "stylus.job"]
    assert int.from_bytes(span.trace_id) == call.get_span_context().trace_id
    assert int.from_bytes(span.parent_span_id) == call.get_span_context().span_id
    assert collector.services == {"gpu-2"}


@pytest.mark.parametrize(
    ("transport", "number"), [("http", signal.SIGTERM), ("http", signal.SIGINT), ("stdio", signal.SIGTERM)]
)
def test_a_server_that_is_told_to_end_sends_its_last_spans(
    database_url: str, tmp_path: Path, collector: Collector, transport: str, number: int
) -> None:
    environment = world.environment(database_url, tmp_path, tmp_path / "data") | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.http.server_address[1]}",
        "OTEL_BSP_SCHEDULE_DELAY": "600000",  # by itself it would send none for ten minutes
    }
    port = free_port()
    with (
        (tmp_path / "log").open("wb") as log,
        wire(environment, *SLOW, "40", *[str(port)] * (transport == "http"), stderr=log) as server,
    ):
        if transport == "http":
            _until_it_answers(server.process, f"http://127.0.0.1:{port}")
            session = Session(f"http://127.0.0.1:{port}/mcp", "auto")
            assert not session.call("generate_image", **STAR).is_error
            session.close()
        else:
            server.send(HELLO, READY, message(2, "tools/call", name="generate_image", arguments=STAR))
            server.until(2)
        assert not collector.spans
        server.process.send_signal(number)
        assert server.process.wait(20) == 128 + number
    assert "stylus.compose" in {span.name for span in collector.spans}
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_without_an_sdk_set_up_a_job_carries_no_context(database_url: str) -> None:
    code = (
        "import sys; from stylus.database import Database; from stylus.jobs import Jobs;"
        "from tests.test_jobs import request; Jobs(Database(sys.argv[1])).submit(request())"
    )
    subprocess.run([sys.executable, "-c", code, database_url], check=True, timeout=60)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select args ->> 'trace' from procrastinate_jobs").fetchone() == ("{}",)
