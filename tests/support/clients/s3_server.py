"""An S3 server in memory, on the loopback port that it is told. One request at a time: only so does moto look
at an object and replace it in one step, as S3 does."""

from __future__ import annotations

import sys

from moto.server import DomainDispatcherApplication
from moto.server import create_backend_app as create_app
from werkzeug.serving import run_simple

if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_app), threaded=False)
