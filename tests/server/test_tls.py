"""TLS between nodes: who is let in, who is told what, and certificates that are renewed while a node runs."""

from __future__ import annotations

import contextlib
import datetime
import logging
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trio

from litefs.cluster.peer import Peer, PeerSettings
from litefs.config_http import TLSConfig
from litefs.errors import ConfigError, LiteFSError, NotTrusted, PeerError, ProtocolMismatch
from litefs.server import secure
from litefs.stream.memory import MemoryCatalog, MemorySource
from litefs.stream.protocols import Identity
from litefs.tls import ClientTLS, ServerTLS, failure
from tests.server.support import CLUSTER, FakeNode, client, serving
from tests.support.certificates import HOUR, Authority, settings

REPLICA = Identity(0xB2, CLUSTER, 1, "replica")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await test()

    trio.run(bounded)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def node() -> FakeNode:
    source = MemorySource("app.db")
    source.commit({1: b"a" * 512})
    return FakeNode(MemoryCatalog(source))


async def greeting(url: str, tls: TLSConfig) -> bytes:
    """The beginning of a replica's stream; raises what the replica would tell."""
    async with Peer(url, PeerSettings(tls=ClientTLS(tls))) as peer, peer.stream(REPLICA, {}) as chunks:
        return await anext(chunks)


async def refusal(url: str, tls: TLSConfig, kind: type[LiteFSError] = NotTrusted) -> str:
    with pytest.raises(kind) as caught:
        await greeting(url, tls)
    return str(caught.value)


def test_a_stream_over_mutual_tls(authority: Authority) -> None:
    async def main() -> None:
        server = settings(authority.issue("primary"), authority.ca)
        async with serving(node(), server) as url:
            assert url.startswith("https:")
            ours = settings(authority.issue("replica"), authority.ca)
            assert (await greeting(url, ours)).startswith(b"LFSTRM")

    run(main)


def test_every_version_from_1_2_on_and_http_1_for_other_clients(authority: Authority) -> None:
    async def main() -> None:
        async with serving(node(), settings(authority.issue("primary"))) as url:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                for http2 in (True, False):
                    context = ssl.create_default_context(cafile=str(authority.ca))
                    context.minimum_version = context.maximum_version = version
                    async with client(verify=context, http1=not http2, http2=http2) as http:
                        response = await http.get(f"{url}/info")
                        assert response.status_code == 200
                        assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            old = ssl.create_default_context(cafile=str(authority.ca))
            old.set_ciphers("DEFAULT:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            async with client(verify=old) as http:
                with pytest.raises(httpx.ConnectError) as caught:
                    await http.get(f"{url}/info")
            found = failure(url, caught.value)
            assert isinstance(found, NotTrusted)
            assert str(found).endswith("the peer accepts no version of TLS that we speak (1.2 and later)")

    run(main)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_certificate_is_told_why(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    limited = ssl.create_default_context(cafile=str(authority.ca))
    limited.maximum_version = version
    monkeypatch.setattr(ClientTLS, "context", lambda self, url: limited)

    async def main() -> None:
        async with serving(node(), settings(authority.issue("primary"), authority.ca)) as url:
            for _ in range(20):  # the reason must not get lost in a reset of the connection
                words = await refusal(url, settings())
                assert "wants a certificate from us" in words
                assert "set http.tls.cert and" in words

    run(main)


def test_verify_clients_false_lets_clients_without_a_certificate_in(authority: Authority) -> None:
    async def main() -> None:
        server = settings(authority.issue("primary"), authority.ca, verify_clients=False)
        async with serving(node(), server) as url:
            assert await greeting(url, settings(ca=authority.ca))

    run(main)


def test_certificates_that_are_not_trusted(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "other")
    expired = -datetime.timedelta(minutes=1)

    async def main() -> None:
        ours = settings(authority.issue("replica"), authority.ca)
        for certificate, words in (
            (other.issue("primary"), "an authority that this node does not know: let http.tls.ca"),
            (authority.issue("away", address="127.0.0.2"), "for another address: use a name"),
            (authority.issue("old", lifetime=expired), "has expired: renew it there"),
        ):
            async with serving(node(), settings(certificate)) as url:
                assert words in await refusal(url, ours)
                if "address" in words:
                    assert "for another host name" in await refusal(
                        url.replace("127.0.0.1", "localhost"), ours
                    )
        async with serving(node(), settings(authority.issue("primary"), authority.ca)) as url:
            for certificate, words in (
                (other.issue("replica"), "does not know the authority of our certificate"),
                (authority.issue("late", lifetime=expired), "our certificate has expired"),
            ):
                assert words in await refusal(url, settings(certificate, authority.ca))

    run(main)


def test_plain_and_tls_that_meet_each_other_say_so(authority: Authority) -> None:
    ours = settings(ca=authority.ca)

    async def main() -> None:
        async with serving(node(), settings(authority.issue("primary"))) as url:
            plain = url.replace("https:", "http:")
            assert "speaks TLS: let its URL" in await refusal(plain, ours, ProtocolMismatch)
            answer = await (client(http1=True, http2=False)).get(f"{plain}/info")
            assert answer.status_code == 400
            assert "speaks TLS: use https" in answer.reason_phrase
            assert "Litefs-Cluster-Id" not in answer.headers
        async with serving(node()) as url:
            assert "begin with http://" in await refusal(url.replace("http:", "https:"), ours)

    run(main)


def test_a_renewed_certificate_serves_without_a_restart(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ours = settings(ca=authority.ca)

    async def main() -> None:
        files = authority.issue("primary", lifetime=-datetime.timedelta(minutes=1))
        async with serving(node(), settings(files)) as url:
            assert "has expired" in await refusal(url, ours)
            key = files[1].read_bytes()
            authority.issue("primary")
            files[1].write_bytes(key)  # the certificate is there, its key not yet
            assert "has expired" in await refusal(url, ours)
            assert "what was read before stays" in caplog.text
            authority.issue("primary")
            peer = Peer(url, PeerSettings(tls=ClientTLS(ours)))
            async with peer, peer.stream(REPLICA, {}) as chunks:
                assert await anext(chunks)
                authority.issue("primary")
                assert await greeting(url, ours), "a new connection"
                assert await anext(chunks), "and the one that was open"

    run(main)


def test_a_renewed_authority_is_trusted_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    successor = Authority(tmp_path / "successor", "successor")

    async def main() -> None:
        ours = PeerSettings(tls=ClientTLS(settings(ca=authority.ca)))
        async with serving(node(), settings(successor.issue("primary"))) as url:
            with pytest.raises(NotTrusted):
                async with Peer(url, ours) as peer, peer.stream(REPLICA, {}):
                    pass
            authority.ca.write_bytes(authority.ca.read_bytes() + successor.ca.read_bytes())
            async with Peer(url, ours) as peer, peer.stream(REPLICA, {}) as chunks:
                assert await anext(chunks)

    run(main)


def test_peers_that_say_nothing_or_nonsense_do_not_last(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr(secure, "LINGER_SECONDS", 0.3)

    async def main() -> None:
        async with serving(node(), settings(authority.issue("primary"))) as url:
            address = ("127.0.0.1", httpx.URL(url).port)
            for words in (b"", b"\x16", b"\x16\x03\x01\x00\x05hello", b"\0" * 100, b"GET "):
                stream = await trio.open_tcp_stream(*address)
                await stream.send_all(words)
                with contextlib.suppress(trio.BrokenResourceError):
                    while await stream.receive_some(4096):
                        pass
                await stream.aclose()
            async with client(verify=ssl.create_default_context(cafile=str(authority.ca))) as http:
                assert (await http.get(f"{url}/info")).status_code == 200

    run(main)


def test_a_peer_that_dies_in_a_handshake_is_not_taken_for_one_without_trust(authority: Authority) -> None:
    """It comes back, or another node leads: the next attempt must not wait as for a new configuration."""

    async def die(stream: trio.SocketStream) -> None:
        await stream.receive_some(64)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, die, 0)
            url = f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            with pytest.raises(PeerError) as caught:
                await greeting(url, settings(ca=authority.ca))
            assert type(caught.value) is PeerError
            nursery.cancel_scope.cancel()

    run(main)


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("one")
    other = authority.issue("two")
    missing, text = tmp_path / "missing", tmp_path / "text"
    text.write_text("no PEM")
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    for config, words in (
        (settings((missing, key)), f"http.tls.cert: cannot read {missing}: No such file"),
        (settings((cert, missing)), f"http.tls.key: cannot read {missing}"),
        (settings((cert, other[1])), "are no pair"),
        (settings((text, key)), "are no pair"),
        (settings((cert, locked)), "is encrypted; keep the key without a passphrase"),
        (settings((cert, key), text), f"http.tls.ca: {text} holds no certificate"),
    ):
        with pytest.raises(ConfigError) as caught:
            ServerTLS(config)
        assert words in str(caught.value)


def test_a_unix_socket_is_not_asked_for_tls(authority: Authority, tmp_path: Path) -> None:
    from litefs.server.app import create_app
    from litefs.server.serve import serve

    path = str(tmp_path / "http.sock")

    async def main() -> None:
        stop = trio.Event()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            async with trio.open_nursery() as nursery:
                tls = ServerTLS(settings(authority.issue("primary"), authority.ca))
                await nursery.start(serve, create_app(node()), [listener], stop, tls)
                async with client(transport=httpx.AsyncHTTPTransport(uds=path), http1=True) as http:
                    assert (await http.get("http://localhost/info")).status_code == 200
                stop.set()

    run(main)


def test_an_expired_lifetime_is_one(authority: Authority) -> None:
    """The tests above need certificates that were valid before and are not now."""
    certificate, _ = authority.issue("old", lifetime=-HOUR / 60)
    command = ["openssl", "verify", "-CAfile", str(authority.ca), str(certificate)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert "certificate has expired" in verified.stdout + verified.stderr
