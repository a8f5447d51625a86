"""An application that costs next to nothing: ``fast_target PORT`` answers each request with 120 bytes."""

from __future__ import annotations

import asyncio
import sys

RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: fast\r\nDate: Mon, 23 Nov 2026 17:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 120\r\n\r\n" + b"x" * 119 + b"\n"
)


class Connection(asyncio.Protocol):
    """Answers; each request comes in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(RESPONSE)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
