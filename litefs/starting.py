"""What the configuration says to the fs process."""

from __future__ import annotations

from litefs.config import Config
from litefs.link.messages import LogOptions, Start, TraceTo
from litefs.link.rules import SyncRules
from litefs.store.paths import DataDir


def start_message(
    config: Config, data: DataDir, mountpoint: str, node_id: int, sync: SyncRules, *, replica: bool
) -> Start:
    """What a fresh fs process has to know."""
    fuse, log = config.fuse, config.log
    return Start(
        str(data.path),
        mountpoint,
        node_id,
        replica=replica,
        allow_other=fuse.allow_other,
        debug=fuse.debug,
        uid=fuse.uid,
        gid=fuse.gid,
        mode=fuse.mode,
        log=LogOptions(log.format, log.timestamp, log.debug),
        trace=trace_to(config),
        grace_ns=int(config.lease.grace * 1e9),
        sync=sync,
        compress=config.data.compress,
        strict_verify=config.strict_verify,
    )


def trace_to(config: Config) -> TraceTo:
    """Where the trace log goes."""
    return TraceTo(config.tracing.file, config.tracing.stdout)
