"""What an archive is kept in: the same of a directory and of S3 (moto's server), each also encrypted."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from random import Random
from urllib.parse import quote

import msgspec
import pytest

from litefs.backup.archive import Archive
from litefs.backup.directory import DirectoryTarget
from litefs.backup.layout import prefix_of
from litefs.backup.sealed import CHUNK, Keys, SealedTarget, plain_size, sealed_size
from litefs.backup.target import SEALED, Target, rfc3339
from litefs.backup.targets import TargetOptions, open_target, target_of
from litefs.config_backup import BackupConfig, EncryptionConfig
from litefs.config_types import FilePath, Secret
from litefs.errors import ArchiveMissing, ArchiveUnavailable, ConfigError
from tests.support import s3

KEY = "00112233445566778899aabbccddeeff" * 2
OPTIONS = TargetOptions(access_key_id="test", secret_access_key=Secret("test"), seconds=5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["directory", "s3", "sealed directory", "sealed s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    found: Target = DirectoryTarget(tmp_path / "archive")
    if request.param.endswith("s3"):
        endpoint = request.getfixturevalue("server").endpoint
        found = open_target(f"s3://{s3.BUCKET}/{uuid.uuid4()}/x?endpoint={endpoint}", OPTIONS)
    return SealedTarget(found, Keys.parse(KEY, "k")) if request.param.startswith("sealed") else found


def whole(target: Target, key: str, step: int) -> bytes:
    reader = target.open(key)
    try:
        return b"".join(iter(lambda: reader.read(step), b""))
    finally:
        reader.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 100_000])
def test_bytes_come_back(target: Target, size: int) -> None:
    data = Random(size).randbytes(size)
    key = "db~t2/litefs/log/1"
    assert target.write(key, data, 1_700_000_000_123)
    assert target.size(key) == size
    assert [(found.key, found.size) for found in target.entries("db~t2/litefs/log/")] == [(key, size)]
    assert target.read(key) == data
    assert whole(target, key, 7777) == data
    pieces = [data[at : at + 999] for at in range(0, size, 999)]
    assert target.write(key, iter(pieces))
    assert target.read(key) == data
    random = Random(1)
    for _ in range(8):
        offset = random.choice((0, size, size + 5, random.randrange(size + 1)))
        length = random.choice((0, 1, 10, CHUNK, 1 << 20))
        assert target.read(key, offset, length) == data[offset : offset + length], (offset, length)
        assert target.read(key, offset) == data[offset:]


def test_a_stream_is_sent_in_parts(target: Target) -> None:
    data = Random(2).randbytes(1 << 20)
    assert target.write("a/b", (data for _ in range(20)), 5)
    assert target.size("a/b") == 20 << 20
    reader = target.open("a/b")
    for number in range(20):
        got = b""
        while len(got) < len(data):
            got += reader.read(len(data) - len(got))
        assert got == data, number
    assert reader.read(1) == b""
    assert target.read("a/b", (20 << 20) - 10) == data[-10:]


def test_a_stream_that_fails_stores_nothing(target: Target) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(6):
            yield bytes(1 << 20)
        raise FileNotFoundError(2, "mine", "scratch")

    target.write("a/b", b"before")
    with pytest.raises((FileNotFoundError, ArchiveUnavailable), match="scratch"):
        target.write("a/b", pieces())
    assert target.read("a/b") == b"before"
    assert [found.name for found in target.entries("a/")] == ["b"]


def test_of_several_creators_one_wins_and_may_ask_again(target: Target) -> None:
    results: dict[int, bool] = {}

    def create(number: int) -> None:
        results[number] = target.write("a/b", b"%d" % number, create=True)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (winner,) = [number for number, won in results.items() if won]
    assert target.read("a/b") == b"%d" % winner
    assert target.write("a/b", b"%d" % winner, create=True), "its answer may have been lost"
    assert not target.write("a/b", b"x", create=True)
    assert not target.write("a/b", b"xx", create=True)


def test_listings_are_of_one_directory_and_in_order(target: Target) -> None:
    keys = ["d/a", "d/log/1", "d/log/2", "d/logs", "d/log0", "d/z", "d~t2/a", "top"]
    for key in keys:
        target.write(key, key.encode())
    assert [found.name for found in target.entries("d/")] == ["a", "log0", "logs", "z"]
    assert [found.name for found in target.entries("d/", "log0")] == ["logs", "z"]
    assert [found.key for found in target.entries("d/log/", "1")] == ["d/log/2"]
    assert [found.key for found in target.entries("")] == ["top"]
    assert [*target.entries("none/")] == []
    assert (target.directories(""), target.directories("d/")) == (["d", "d~t2"], ["log"])
    assert target.directories("none/") == []
    target.delete([*keys, "never/there"])
    assert [*target.entries("d/")] == []
    target.delete([])


def test_more_objects_than_one_answer_lists(target: Target) -> None:
    names = [f"{number:016x}" for number in range(1, 1004)]
    for name in names:
        target.write(f"l/{name}", b"")
    assert [found.name for found in target.entries("l/")] == names
    assert [found.name for found in target.entries("l/", names[500])] == names[501:]
    target.delete(f"l/{name}" for name in names)
    assert [*target.entries("l/")] == []


def test_what_is_not_there(target: Target) -> None:
    target.write("a/b", b"x")
    for call in (target.read, target.size, target.open):
        with pytest.raises(ArchiveMissing, match="a/c"):
            call("a/c")
    with pytest.raises(ArchiveMissing):
        target.read("a/c", 10, 10)


def raw(server: s3.S3, path: str) -> tuple[bytes, Message]:
    """What the server answers to a plain GET: body and headers."""
    # moto asks for a signature, and checks none.
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}
    request = urllib.request.Request(f"{server.endpoint}/{s3.BUCKET}/{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as found:
        return found.read(), found.headers


def test_names_and_metadata_on_s3_are_those_of_litestream(server: s3.S3) -> None:
    root = str(uuid.uuid4())
    target = open_target(f"s3://{s3.BUCKET}/{root}/a b?endpoint={server.endpoint}", OPTIONS)
    archive = Archive(target, prefix_of("x/y.db", 2))
    archive.write(0, 1, 1, 1_700_000_000_120, b"one")
    archive.write(9, 1, 255, 1_700_000_000_000, (bytes(1 << 20) for _ in range(6)))
    archive.claim("n", 1)
    listing = raw(server, f"?list-type=2&prefix={root}")[0].decode()
    names = [part.partition("<")[0] for part in listing.split("<Key>")[1:]]
    base = f"{root}/a b/x~2Fy.db~t2"
    assert names == [
        f"{base}/0000/0000000000000001-0000000000000001.ltx",
        f"{base}/0009/0000000000000001-00000000000000ff.ltx",
        f"{base}/litefs/claim",
    ]
    headers = [raw(server, quote(name))[1] for name in names]
    times = [one["x-amz-meta-litestream-timestamp"] for one in headers]
    assert times == ["2023-11-14T22:13:20.12Z", "2023-11-14T22:13:20Z", None]
    assert target.name == f"s3://{s3.BUCKET}/{root}/a b"
    assert archive.files(9)[0].size == 6 << 20


def test_a_bucket_that_is_not_there_is_no_empty_archive(server: s3.S3) -> None:
    target = open_target(f"s3://no-such-bucket/p?endpoint={server.endpoint}", OPTIONS)
    for call in (
        lambda: target.read("a"),
        lambda: target.size("a"),
        lambda: target.open("a"),
        lambda: target.write("a", b""),
        lambda: target.write("a", b"", create=True),
        lambda: list(target.entries("a/")),
        lambda: target.directories(""),
        lambda: target.delete(["a"]),
    ):
        with pytest.raises(ArchiveUnavailable, match="NoSuchBucket"):
            call()


def test_parts_of_a_stream_that_failed_do_not_stay(server: s3.S3) -> None:
    root = str(uuid.uuid4())
    target = open_target(f"s3://{s3.BUCKET}/{root}?endpoint={server.endpoint}", OPTIONS)

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 20)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError):
        target.write("a", pieces())
    assert root.encode() not in raw(server, "?uploads")[0], "they would cost"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_700_000_000_500, "2023-11-14T22:13:20.5Z"),
        (1_700_000_000_050, "2023-11-14T22:13:20.05Z"),
    ],
)
def test_times_are_written_as_go_writes_them(milliseconds: int, text: str) -> None:
    assert rfc3339(milliseconds) == text


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 10**9])
def test_sizes_of_what_is_encrypted(size: int) -> None:
    assert plain_size(sealed_size(size)) == size


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("file:///a%20b/c", "file:///a b/c"),
        ("file://localhost/a", "file:///a"),
        ("/a b", "file:///a b"),
        ("s3://b", "s3://b"),
        ("s3://b/p%20q/", "s3://b/p q"),
        ("s3://b/p?region=eu-west-1&forcePathStyle=true&sign-payload=true", "s3://b/p"),
        ("s3://b/p?force-path-style=false&endpoint=e:1", "s3://b/p"),
        ("gs://b/p", "gs://b/p"),
        ("abs://account@b/p", "abs://b/p"),
        ("az://b", "az://b"),
    ],
)
def test_urls(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    target = open_target(url)
    assert target.name == name
    assert target.layout.flat == url.startswith("s3:")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h/b", "no archive can be at http://"),
        ("file://host/b", "write file:///path"),
        ("s3:///p", "the name of the bucket is missing"),
        ("s3://b/p/../q", "cannot be the prefix of an archive"),
        ("s3://b//p", ""),
        ("s3://b/p?sse-kms-key-id=x", "unknown parameter 'sse-kms-key-id'"),
        ("s3://b/p?endpoint=ftp://h", "endpoint: write http:// or https://"),
    ],
)
def test_urls_that_cannot_be(url: str, message: str) -> None:
    if not message:
        assert open_target(url).name == "s3://b/p"
        return
    with pytest.raises(ConfigError) as caught:
        open_target(url)
    assert message in str(caught.value)


def test_credentials_come_from_the_configuration_and_then_from_the_environment(
    server: s3.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("test\n")
    key = tmp_path / "key"
    key.write_text(KEY)
    root = str(uuid.uuid4())
    config = BackupConfig(
        type="s3",
        bucket=s3.BUCKET,
        path=root,
        endpoint=server.endpoint,
        access_key_id="test",
        secret_access_key=Secret(f"file:{secret}"),
    )
    target_of(config).write("a", b"1")
    encrypted = msgspec.structs.replace(config, encryption=EncryptionConfig(key_file=FilePath(key)))
    target_of(encrypted).write("b", b"1")
    assert target_of(config).read("b").startswith(SEALED)
    for names in (
        ("LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ):
        with monkeypatch.context() as environment:
            for name in names:
                environment.setenv(name, "test")
            assert open_target(config.location).read("a") == b"1"
    secret.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        target_of(config)


def test_a_connection_is_encrypted_unless_the_endpoint_says_otherwise(server: s3.S3) -> None:
    target = open_target(f"s3://b/p?endpoint={server.endpoint.replace('http://', 'https://')}", OPTIONS)
    with pytest.raises(ArchiveUnavailable):
        target.read("a")


def test_a_directory_says_that_it_is_gone(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "archive")
    assert target.write("a/b", b"1", create=True)
    (tmp_path / "archive/a/b").unlink()
    (tmp_path / "archive/a").rmdir()
    assert target.write("a/b", b"1", create=True), "made anew"
    (tmp_path / "archive/c").write_bytes(b"")
    with pytest.raises(ArchiveUnavailable):
        target.write("c/d", b"1")


def test_what_is_not_configured_is_not_loaded() -> None:
    code = (
        "import sys, litefs.backup.targets as t; t.open_target('/tmp/x');"
        "assert not {'obstore', 'cryptography'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
