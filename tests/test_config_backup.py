"""``backup:`` of litefs.yml."""

from __future__ import annotations

from pathlib import Path

import pytest

from litefs.config import Config, parse
from litefs.config_backup import BackupConfig
from litefs.errors import ConfigError

STATIC = "lease: {type: static}\n"


def read(backup: str) -> BackupConfig:
    return parse(f"{STATIC}backup: {{{backup}}}\n", "litefs.yml", None).backup


def test_without_a_section_there_is_no_archive() -> None:
    assert not Config().backup.enabled
    assert Config().backup.location == ""


@pytest.mark.parametrize(
    ("backup", "kind", "location"),
    [
        ("type: file, path: /b c", "file", "file:///b%20c"),
        ("url: 'file:///b%20c'", "file", "file:///b%20c"),
        ("type: s3, bucket: b", "s3", "s3://b/"),
        (
            "type: s3, bucket: b, path: /p/q/, endpoint: 'http://e:1', region: r, force-path-style: true",
            "s3",
            "s3://b/p/q?endpoint=http%3A%2F%2Fe%3A1&region=r&forcePathStyle=true",
        ),
        ("url: 's3://b/p?region=r'", "s3", "s3://b/p?region=r"),
        ("url: 's3://b/p?region=r', region: q", "s3", "s3://b/p?region=q"),
        ("type: gcs, bucket: b, path: p", "gcs", "gs://b/p"),
        ("url: 'gs://b/p'", "gcs", "gs://b/p"),
        ("type: azure, bucket: b", "azure", "az://b/"),
        ("url: 'abs://b/p'", "azure", "abs://b/p"),
    ],
)
def test_where_the_archive_is(backup: str, kind: str, location: str) -> None:
    config = read(backup)
    assert (config.kind, config.location, config.enabled) == (kind, location, True)


def test_defaults() -> None:
    config = read("type: file, path: /b")
    assert (config.sync_interval, config.levels) == (1, (30, 300, 3600))
    assert (config.snapshot.interval, config.snapshot.retention, config.retention) == (86400, 86400, 86400)
    assert (config.max_log_bytes, config.seed, config.encryption.enabled) == (4 << 30, False, False)


def test_the_archive_reaches_back_as_far_as_single_transactions_do() -> None:
    assert read("type: file, path: /b, retention: 48h").reach == 48 * 3600
    assert read("type: file, path: /b, snapshot: {retention: 96h}").reach == 96 * 3600


@pytest.mark.parametrize(
    ("backup", "message"),
    [
        ("type: litefs-cloud, cluster: c, auth-token: t", "the service LiteFS Cloud is gone; use `type: s3`"),
        ("type: ftp", "invalid backup client type: 'ftp', must be file, s3, gcs or azure"),
        ("type: file", "backup.path required"),
        ("type: s3", "backup.bucket required"),
        ("url: 's3:///p'", "backup.bucket required"),
        ("path: /b", "backup.type required"),
        ("bucket: b", "backup.type required"),
        ("url: 'http://u:pass@h/b'", "backup.url: 'http://u:…@h/b' is no URL of an archive; write s3://"),
        ("url: '/b'", "backup.url: '/b' is no URL of an archive"),
        ("type: gcs, url: 's3://b'", "backup.url: 's3://b' is no URL of type gcs"),
        ("url: 's3://b', bucket: c", "give either url, or type with bucket and path"),
        ("url: 'file://host/b'", "write file:///path"),
        ("type: s3, bucket: b, endpoint: 'e:1'", "backup.endpoint: write http:// or https://, got 'e:1'"),
        ("type: s3, bucket: b, access-key-id: a", "access-key-id and secret-access-key belong together"),
        ("type: file, path: /b, sync-interval: 50ms", "backup.sync-interval must be 100ms or more, got 50ms"),
        ("type: file, path: /b, levels: []", "backup.levels: 1 to 8 intervals, got 0"),
        ("type: file, path: /b, levels: [30s, 30s]", "longer than the one before, got 30s"),
        ("type: file, path: /b, levels: [500ms]", "at least 1s"),
        ("type: file, path: /b, levels: [30]", "backup.levels[0]: expected a duration with a unit"),
        ("type: file, path: /b, retention: 0s", "backup.retention must be positive, got 0s"),
        ("type: file, path: /b, snapshot: {interval: 0s}", "backup.snapshot.interval must be positive"),
        ("type: file, path: /b, verify-interval: -1s", "verify-interval must not be negative"),
        ("type: file, path: /b, concurrency: 0", "backup.concurrency must be from 1 to 32, got 0"),
        ("type: file, path: /b, max-log-bytes: 1", "backup.max-log-bytes must be 1048576 or more, got 1"),
        ("type: file, path: /b, databases: ['']", "backup.databases: '' can match no database's name"),
        ("type: file, path: /b, exclude: ['']", "backup.exclude: ''"),
        ("type: file, path: /b, encryption: {key-file: /k, key-env: K}", "give either key-file or key-env"),
        ("type: file, path: /b, encryption: {key-file: }", "encryption.key-file: is empty"),
        ("type: file, path: /litefs/b", "/litefs/b lies inside the fuse directory /litefs"),
        ("type: file, path: /var/lib/litefs/b", "lies inside the data directory /var/lib/litefs"),
    ],
)
def test_what_is_refused(backup: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(backup)
    assert message in str(caught.value)


def test_a_relative_directory_is_one_of_where_the_node_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("type: file, path: b").location == f"file://{tmp_path}/b"
