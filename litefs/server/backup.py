"""``POST /backup/snapshot``, and the figures of restore drills (docs/archive.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quart import Response, request

from litefs.server.app import LiteFSApp
from litefs.server.view import NodeView
from litefs.store.paths import validate_name
from litefs.tokens import Access

if TYPE_CHECKING:
    from prometheus_client.core import Metric


def drill_metrics(node: NodeView, access: Access) -> Iterator[Metric]:
    """Of the drills of those databases that ``access`` allows."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ["db"]
    sound = GaugeMetricFamily(
        "litefs_archive_verify_sound", "1 if the last restore drill found nothing wrong.", labels=labels
    )
    ended = GaugeMetricFamily(
        "litefs_archive_verify_timestamp_seconds", "When the last restore drill ended.", labels=labels
    )
    took = GaugeMetricFamily(
        "litefs_archive_verify_seconds", "What the last restore drill took.", labels=labels
    )
    txid = GaugeMetricFamily("litefs_archive_verify_txid", "The transaction that it restored.", labels=labels)
    runs = CounterMetricFamily("litefs_archive_verify_runs", "Restore drills.", labels=labels)
    failures = CounterMetricFamily(
        "litefs_archive_verify_failures", "Those that found something wrong.", labels=labels
    )
    for drill in node.drills():
        if not access.allows(drill.name):
            continue
        of = [drill.name]
        sound.add_metric(of, float(drill.sound))
        ended.add_metric(of, drill.ended)
        took.add_metric(of, drill.seconds)
        txid.add_metric(of, drill.txid)
        runs.add_metric(of, drill.runs)
        failures.add_metric(of, drill.failures)
    yield from (sound, ended, took, txid, runs, failures)


def archive_metrics(node: NodeView, access: Access) -> Iterator[Metric]:
    """Of the archive of those databases that ``access`` allows, on the primary."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ["db"]
    gauges = {
        "txid": "The transaction up to which the archive holds everything.",
        "lag_transactions": "Transactions that are not archived yet.",
        "lag_seconds": "For how long the oldest of them has been there.",
        "timeline": "The timeline of the archive that is written.",
        "failing": "1 if the archive cannot be written at present.",
    }
    counters = {
        "bytes": "Bytes sent to the archive. A counter since this node became primary, as the next ones.",
        "objects": "Objects stored in the archive.",
        "snapshots": "Whole copies stored in the archive.",
        "errors": "Attempts to write to the archive that failed.",
    }
    families = {
        name: GaugeMetricFamily(f"litefs_archive_{name}", text, labels=labels)
        for name, text in gauges.items()
    }
    counted = {
        name: CounterMetricFamily(f"litefs_archive_{name}", text, labels=labels)
        for name, text in counters.items()
    }
    for one in node.archived():
        if not access.allows(one.name):
            continue
        of = [one.name]
        families["txid"].add_metric(of, one.txid)
        families["lag_transactions"].add_metric(of, one.behind)
        families["lag_seconds"].add_metric(of, one.lag)
        families["timeline"].add_metric(of, one.timeline)
        families["failing"].add_metric(of, float(bool(one.error)))
        counted["bytes"].add_metric(of, one.bytes)
        counted["objects"].add_metric(of, one.objects)
        counted["snapshots"].add_metric(of, one.snapshots)
        counted["errors"].add_metric(of, one.errors)
    yield from families.values()
    yield from counted.values()


def register(app: LiteFSApp, node: NodeView) -> None:
    """Add the endpoint, which is for tokens without a list of databases."""

    @app.post("/backup/snapshot", provide_automatic_options=False)
    async def snapshot() -> Response:
        name = request.args.get("name", "")
        made = await node.archive_snapshot(validate_name(name) if name else "")
        body = json.dumps({database: f"{txid:016x}" for database, txid in made.items()})
        return Response(body + "\n", content_type="application/json")
