"""``http.tls``, tokens and lists of databases in ``litefs.yml``."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from litefs.config import Config, parse
from litefs.errors import ConfigError
from litefs.security import Security
from tests.support.certificates import Authority

STATIC = "lease: {type: static}\n"


def read(text: str, environment: dict[str, str] | None = None) -> Config:
    return parse(text, "litefs.yml", environment)


def http(text: str) -> str:
    return f"{STATIC}http: {{{text}}}\n"


@pytest.mark.parametrize("key", ["auth-token", "tls: {ca", "tls: {cert", "tokens: [{name: a, token-file"])
@pytest.mark.parametrize("value", ["", "''", "$UNSET"])
def test_a_variable_that_is_not_set_does_not_open_a_node(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"litefs\.yml:2:\d+: http\..*: is empty; is the variable set\?"):
        read(http(f"{key}: {value}{'}' * key.count('{')}{']' * key.count('[')}"), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (http("tls: {cert: /c}"), "http.tls: cert and key belong together"),
        (http("tls: {cert: /c, key: /k, cacert: /a}"), "unknown key 'http.tls.cacert'"),
        (http("tokens: [{name: a, token: t}]"), "http.tokens needs http.auth-token too"),
        (http("auth-token: x, tokens: [{token: t}]"), "missing required field `name`"),
        (http("auth-token: x, tokens: [{name: 'a b', token: t}]"), "each needs a name of its own"),
        (http("auth-token: x, tokens: [{name: a, token: t}, {name: a, token: u}]"), "got 'a'"),
        (http("auth-token: x, tokens: [{name: a}]"), "a: give either token or token-file"),
        (http("auth-token: x, tokens: [{name: a, token: t, token-file: /f}]"), "give either token or"),
        (http("auth-token: x, tokens: [{name: a, token: t, databases: ['']}]"), "'' can match no database"),
        (
            "lease: {type: static, databases: [a]}",
            "cannot specify a database replication filter on candidate",
        ),
        (
            "lease: {type: static, candidate: false, advertise-url: u, databases: ['']}",
            "lease.databases: '' can match no database's name",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in str(caught.value)


def test_a_secret_may_be_a_number_and_is_not_in_messages() -> None:
    config = read(http("auth-token: 0123, tokens: [{name: a, token: $T}]"), {"T": "hunter2"})
    assert config.http.auth_token == "0123"
    assert config.http.tokens[0].secret == "hunter2"
    assert "hunter2" not in repr(config)


def test_a_node_with_a_certificate_advertises_https() -> None:
    text = "lease: {type: consul, consul: {key: k}}\nhttp: {addr: ':99', tls: {cert: /c, key: /k}}"
    assert read(text).lease.advertise_url == f"https://{socket.gethostname()}:99"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("auth-token: x", "the token travels unencrypted"),
        ("auth-token: x, addr: '127.0.0.1:1'", None),
        ("auth-token: x, addr: 'localhost:1'", None),
        ("tls: {ca: CA}", "this node serves plain HTTP"),
        ("tls: {ca: CA, cert: CERT, key: KEY}, auth-token: x", None),
        ("addr: ':1'", None),
    ],
)
def test_a_warning_where_less_is_safe_than_it_may_seem(
    text: str, warning: str | None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("node")
    text = text.replace("CA", str(authority.ca)).replace("CERT", str(cert)).replace("KEY", str(key))
    security = Security.of(read(http(text)))
    assert (security.tls is not None) == ("cert" in text)
    assert [warning in record.message for record in caplog.records] == ([True] if warning else [])
    assert caplog.records == [] or caplog.records[0].levelno == logging.WARNING
