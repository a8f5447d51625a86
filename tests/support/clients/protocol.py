"""The other end of ``tests.support.processes.Client``: JSON lines on stdin and stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any


def reply(result: object) -> None:
    """Answer one request."""
    print(json.dumps({"result": result}), flush=True)


def reply_error(error: BaseException) -> None:
    """Answer one request with an error."""
    message = f"{error} ({' '.join(sys.argv[1:])})"
    print(json.dumps({"error": type(error).__name__, "message": message}), flush=True)


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests until stdin closes. An operation's exception becomes an error answer."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = operations[request.pop("operation")](**request)
        except Exception as error:
            reply_error(error)
        else:
            reply(result)
