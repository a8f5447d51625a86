"""/metrics for Prometheus, under the names that Go LiteFS uses where we have the value (docs/http-api.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import trio
from quart import Response

from litefs.meters import Meters, Times
from litefs.server.access import current
from litefs.server.app import LiteFSApp
from litefs.server.backup import archive_metrics, drill_metrics
from litefs.server.replication import Subscribers
from litefs.server.view import DatabaseInfo, NodeView
from litefs.tokens import Access

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_PHASES = ("prepare", "append", "replicas", "answer")
_LEAST, _MOST = 10, 35
"""Exponents of the first and the last bound of a histogram: 2¹⁰ ns, about 1 µs, to 34 s."""


def render(node: NodeView, subscribers: Subscribers, access: Access) -> bytes:
    """The text exposition of all metrics, of databases those that ``access`` allows. For a worker thread.

    Imports prometheus-client at first use only.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class NodeCollector(Collector):
        def collect(self) -> Iterable[Metric]:
            databases = [database for database in node.databases() if access.allows(database.name)]
            meters = node.meters()
            yield from _node(node, meters, subscribers, len(databases))
            yield from _databases(databases)
            yield from _counted([database.name for database in databases], meters)
            yield from _timed(meters)
            yield from archive_metrics(node, access)
            yield from drill_metrics(node, access)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector())
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _node(node: NodeView, meters: Meters, subscribers: Subscribers, databases: int) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    figures = node.figures()
    for name, text, value in (
        ("litefs_is_primary", "1 if this node is the primary.", float(node.is_primary)),
        ("litefs_is_ready", "1 if /readyz says so.", float(figures.ready)),
        ("litefs_db_count", "Number of databases.", databases),
        ("litefs_subscriber_count", "Replicas connected to this node.", subscribers.count),
        (
            "litefs_sync_replicas",
            "Replicas that have every commit that was answered.",
            sum(one.in_sync for one in node.replicas.connected()),
        ),
        ("litefs_http_stream_count", "Open replication streams.", subscribers.count),
        ("litefs_event_listeners", "Open streams of events.", node.events.count),
        ("litefs_lag_seconds", "How far this node is behind the primary.", node.lag_seconds or 0.0),
        ("litefs_lease_term", "The highest term known; it counts changes of primary.", figures.term),
        ("litefs_lost_directories", "What was set aside in lost/.", figures.lost),
    ):
        yield GaugeMetricFamily(name, text, value=value)
    for name, text, value in (
        ("litefs_stream_sent_bytes", "Bytes sent to replicas.", subscribers.bytes_sent),
        ("litefs_stream_received_bytes", "Bytes received from primaries.", meters.received_bytes),
        ("litefs_role_changes", "Times this node became primary, or ceased to be.", figures.role_changes),
        ("litefs_lease_renewals", "Renewals of the lease that its store took.", meters.lease_renewals),
        (
            "litefs_lease_renewal_failures",
            "Renewals that the lease's store refused or did not answer.",
            meters.lease_failures,
        ),
    ):
        yield CounterMetricFamily(name, text, value=value)


def _databases(databases: Sequence[DatabaseInfo]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    txid = GaugeMetricFamily("litefs_db_txid", "Last transaction.", labels=["db"])
    count = GaugeMetricFamily("litefs_db_ltx_count", "Transactions in the log.", labels=["db"])
    size = GaugeMetricFamily("litefs_db_ltx_bytes", "Bytes of the log.", labels=["db"])
    segments = GaugeMetricFamily("litefs_db_log_segments", "Files of the log.", labels=["db"])
    damaged = GaugeMetricFamily(
        "litefs_db_damaged", "1 while a database is served for reading only.", labels=["db"]
    )
    lag = GaugeMetricFamily(
        "litefs_db_lag_seconds", "Age of the last transaction when it was applied here.", labels=["db"]
    )
    for database in databases:
        labels, last = [database.name], database.position.txid
        txid.add_metric(labels, last)
        count.add_metric(labels, last - database.first_txid + 1 if database.first_txid else 0)
        size.add_metric(labels, database.log_bytes)
        segments.add_metric(labels, database.log_segments)
        damaged.add_metric(labels, float(database.damaged))
        if database.lag is not None:
            lag.add_metric(labels, database.lag)
    yield from (txid, count, size, segments, damaged, lag)


_COUNTED = (
    ("commits", "litefs_db_commit_count", "Transactions committed here."),
    ("applied", "litefs_db_apply_count", "Transactions applied from the primary."),
    ("reaped", "litefs_db_ltx_reap_count", "Transactions removed from the log by retention."),
    ("database_writes", "litefs_db_database_write_count", "Writes of clients to the database file."),
    ("journal_writes", "litefs_db_journal_write_count", "Writes of clients to the rollback journal."),
    ("wal_writes", "litefs_db_wal_write_count", "Writes of clients to the WAL."),
    ("shm_writes", "litefs_db_shm_write_count", "Writes to the wal-index that are not through a map."),
)


def _counted(names: Sequence[str], meters: Meters) -> Iterator[Metric]:
    """Counters under Go's names: without the ``_total`` that prometheus-client gives to what it calls one."""
    from prometheus_client.core import UnknownMetricFamily

    for key, name, text in _COUNTED:
        metric = UnknownMetricFamily(name, text + " A counter since the start.", labels=["db"])
        for database in names:
            metric.add_metric([database], meters.counts[key].get(database, 0))
        yield metric
    frames = UnknownMetricFamily(
        "litefs_http_frame_send_count",
        "Transactions and snapshots sent to replicas. A counter since the start.",
        labels=["db", "type"],
    )
    for database in names:
        frames.add_metric([database, "ltx"], meters.sent.get(database, 0))
        frames.add_metric([database, "ltx:snapshot"], meters.snapshots_sent.get(database, 0))
    yield frames


def _timed(meters: Meters) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    commit = HistogramMetricFamily(
        "litefs_commit_seconds",
        "Commits by phase: prepare (encode), append (to the log), replicas (waiting for them), answer "
        "(all of the request that commits).",
        labels=["phase"],
    )
    for phase in _PHASES:
        buckets, total = _histogram(meters.times[phase])
        commit.add_metric([phase], buckets, total)
    yield commit
    for key, name, text in (
        ("fsync", "litefs_fsync_seconds", "Syncs of files to the disk, by both processes."),
        ("apply", "litefs_apply_seconds", "Batches of transactions applied on a replica."),
    ):
        buckets, total = _histogram(meters.times[key])
        yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


def _histogram(times: Times) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound in seconds, and the sum in seconds."""
    found, count = [], 0
    for exponent, here in enumerate(times.buckets[: _MOST + 1]):
        count += here
        if exponent >= _LEAST:
            found.append((f"{(1 << exponent) / 1e9:g}", float(count)))
    found.append(("+Inf", float(sum(times.buckets))))
    return found, times.total / 1e9


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoint."""

    @app.route("/metrics", methods=["GET", "POST", "PUT"], provide_automatic_options=False)
    async def metrics() -> Response:
        body = await trio.to_thread.run_sync(render, node, app.extensions["subscribers"], current())
        return Response(body, content_type="text/plain; version=0.0.4; charset=utf-8")
