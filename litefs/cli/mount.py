"""``litefs mount``: configuration, process log, then the node."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

import msgspec

from litefs import config as configuration
from litefs import logs
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.config import Config

_FLAGS = (
    Flag("config", "path of the configuration file", "PATH"),
    Flag("dir", "mount one node with defaults at DIR, without a configuration file", "DIR"),
    Flag("no-expand-env", "do not expand environment variables in the configuration file"),
    Flag("fuse.debug", "log every FUSE request"),
    Flag("debug", "log debug messages"),
    Flag("skip-unmount", "accepted for Go LiteFS: a live mount is never unmounted, a dead one always is"),
    Flag("tracing", "write the trace log to standard output, too"),
)
_IGNORED_FLAGS = ("skip-unmount",)

USAGE = {
    "mount": "Usage:\n\n  litefs mount [ARGUMENTS] [-- CMD ARG...]\n\n"
    "Mounts the file system and replicates until it is told to stop, or until CMD ends.\n"
    f"Without -config, the first of {', '.join(Config.SEARCH_PATH)} is read.\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}"
}

SPECS = {"mount": Spec(_FLAGS)}

log = logging.getLogger(__name__)


def mount(argv: Sequence[str]) -> int:
    """Run a node until it stops and return its exit code. Raises UsageError, LiteFSError."""
    own, command = _split(argv)
    arguments = parse_flags(_FLAGS, own)
    if arguments.rest:
        raise UsageError("too many arguments, specify a '--' to specify an exec command")
    # Go sets it too, for the configuration as well as for the supervised command.
    os.environ.setdefault("HOSTNAME", socket.gethostname())
    config = _configure(arguments)
    logs.setup(config.log)
    for name in _IGNORED_FLAGS:
        if name in arguments.switches:
            log.warning("flag has no function: -%s", name)
    # Only now: it brings FUSE, HTTP and the kernels.
    from litefs import node

    return node.run(config, command=command)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Our arguments, and the command after ``--`` if there is one."""
    arguments = list(argv)
    if "--" not in arguments:
        return arguments, None
    end = arguments.index("--")
    command = arguments[end + 1 :]
    if not command:
        raise UsageError("no command after '--'")
    return arguments[:end], command


def _configure(arguments: Arguments) -> Config:
    """The configuration from file or ``-dir``, with what the flags change. Raises UsageError, ConfigError."""
    path, directory = arguments.values["config"], arguments.values["dir"]
    if path and directory:
        raise UsageError("-config and -dir exclude each other")
    if directory:
        config = Config.for_dir(directory)
        print(
            f"mounting {config.fuse.dir}, data in {config.data.dir}, HTTP on {config.http.addr}", flush=True
        )
    else:
        loaded = configuration.load(path or None, expand_env="no-expand-env" not in arguments.switches)
        print(f"config file read from {loaded.path}", flush=True)
        config = loaded.config
    replace = msgspec.structs.replace
    if "debug" in arguments.switches:
        config = replace(config, log=replace(config.log, debug=True))
    if "fuse.debug" in arguments.switches:
        config = replace(config, fuse=replace(config.fuse, debug=True))
    if "tracing" in arguments.switches:
        config = replace(config, tracing=replace(config.tracing, stdout=True))
    return config
