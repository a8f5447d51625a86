"""What ``litefs status`` makes of an answer that is hard to have of real nodes."""

from __future__ import annotations

import msgspec

from litefs.cli.cluster import View
from litefs.cli.status import report
from litefs.server.status_format import Status
from tests.page.answers import many_databases


def test_a_replica_does_not_lack_what_it_is_not_sent() -> None:
    answer = many_databases(2)
    for one in answer["replicas"]:
        one["inSync"] = False
    del answer["replicas"][0]["databases"]["tenant-001.db"]
    answer["replicas"][1]["databases"]["tenant-000.db"] = answer["databases"][0]["txid"]
    status = msgspec.convert(answer, Status)
    lines = "\n".join(report(View(status, status, "http://busy"))).splitlines()
    (node,) = [line for line in lines if line.split()[:2] == ["replica-0", "replica"]]
    assert "up to date" in node
    (database,) = [line for line in lines if line.startswith("tenant-001.db")]
    assert database.split()[-3:] == ["replica-1", "by", "1"]
