"""/metrics for Prometheus, under the names that Go LiteFS uses where we have the value."""

from __future__ import annotations

from collections.abc import Iterable

import trio
from quart import Response

from litefs.server.access import current
from litefs.server.app import LiteFSApp
from litefs.server.replication import Subscribers
from litefs.server.view import NodeView
from litefs.tokens import Access


def render(node: NodeView, subscribers: Subscribers, access: Access) -> bytes:
    """The text exposition of all metrics, of databases those that ``access`` allows.

    Imports prometheus-client at first use only.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

    class NodeCollector(Collector):
        def collect(self) -> Iterable[Metric]:
            databases = [database for database in node.databases() if access.allows(database.name)]
            for name, text, value in (
                ("litefs_is_primary", "1 if this node is the primary.", float(node.is_primary)),
                ("litefs_db_count", "Number of databases.", len(databases)),
                ("litefs_subscriber_count", "Replicas connected to this node.", subscribers.count),
                (
                    "litefs_sync_replicas",
                    "Replicas that have every commit that was answered.",
                    sum(one.in_sync for one in node.replicas.connected()),
                ),
                ("litefs_http_stream_count", "Open replication streams.", subscribers.count),
                ("litefs_lag_seconds", "How far this node is behind the primary.", node.lag_seconds or 0.0),
            ):
                yield GaugeMetricFamily(name, text, value=value)
            txid = GaugeMetricFamily("litefs_db_txid", "Last transaction.", labels=["db"])
            segments = GaugeMetricFamily("litefs_db_log_segments", "Files of the log.", labels=["db"])
            size = GaugeMetricFamily("litefs_db_log_bytes", "Bytes of the log.", labels=["db"])
            damaged = GaugeMetricFamily(
                "litefs_db_damaged", "1 while a database is served for reading only.", labels=["db"]
            )
            commits = CounterMetricFamily(
                "litefs_db_commit_count", "Transactions committed here since the start.", labels=["db"]
            )
            for database in databases:
                labels = [database.name]
                txid.add_metric(labels, database.position.txid)
                segments.add_metric(labels, database.log_segments)
                size.add_metric(labels, database.log_bytes)
                commits.add_metric(labels, database.commits)
                damaged.add_metric(labels, float(database.damaged))
            yield from (txid, segments, size, commits, damaged)
            yield CounterMetricFamily(
                "litefs_stream_sent_bytes", "Bytes sent to replicas.", value=subscribers.bytes_sent
            )

    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector())
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoint."""

    @app.route("/metrics", methods=["GET", "POST", "PUT"], provide_automatic_options=False)
    async def metrics() -> Response:
        body = await trio.to_thread.run_sync(render, node, app.extensions["subscribers"], current())
        return Response(body, content_type="text/plain; version=0.0.4; charset=utf-8")
