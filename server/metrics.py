"""`GET /metrics` in Prometheus's text format: the queue and its workers, which every server on the database tells alike
(take one, not their sum), and what this process did. Nothing in it comes from a caller: no name, prompt or id.
"""

from collections.abc import Iterable

import anyio.to_thread
from prometheus_client import CollectorRegistry, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Door
from server.backend import Backend
from stylus.errors import StylusError
from stylus.records import JobStatus
from stylus.telemetry import CACHE_BYTES, SECONDS

WAITING = (JobStatus.QUEUED, JobStatus.RUNNING)


class Queue(Collector):
    """Asked at each scrape: the database counts for all processes, and remembers over restarts."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        try:
            counts = self._backend.jobs.counts()
        except StylusError:
            yield GaugeMetricFamily("stylus_database_up", "Whether Postgres answers.", 0)
            return
        yield GaugeMetricFamily("stylus_database_up", "Whether Postgres answers.", 1)
        depth = GaugeMetricFamily("stylus_jobs", "Unfinished jobs.", labels=["status"])
        ended = CounterMetricFamily("stylus_jobs_finished", "Jobs that ended.", labels=["outcome"])
        for status in JobStatus:
            family = depth if status in WAITING else ended
            family.add_metric([status.value], counts.jobs.get(status, 0))
        seen = GaugeMetricFamily(
            "stylus_worker_last_seen_timestamp_seconds", "Last heartbeat of a worker.", labels=["worker"]
        )
        for worker, at in counts.workers.items():
            seen.add_metric([str(worker)], at.timestamp())
        yield from (depth, ended, seen, CounterMetricFamily("stylus_images", "Images made.", counts.images))


class Metrics:
    """The route's answer."""

    def __init__(self, backend: Backend, door: Door) -> None:
        self._door = door
        self._registry = CollectorRegistry()
        for collector in (SECONDS, CACHE_BYTES, backend.audit.requests, Queue(backend)):
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    async def scrape(self, request: Request) -> Response:
        self._door.admit(request, "metrics")
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        text = await anyio.to_thread.run_sync(encode, self._registry)
        return Response(text, headers={"Content-Type": content_type})
