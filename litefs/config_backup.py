"""The ``backup`` section of ``litefs.yml``: where the archive is, and what is kept there."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from litefs.config_types import Duration, FilePath, Secret, Section
from litefs.errors import ConfigError

SCHEMES = {
    "file": "file",
    "s3": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abs": "azure",
    "azure": "azure",
}
"""Of a URL, with the type that each stands for."""
_BUCKETS = {"s3": "s3", "gcs": "gs", "azure": "az"}
"""The scheme of a type that has buckets."""
_GONE = (
    "backup.type: the service LiteFS Cloud is gone; use `type: s3`, `gcs`, `azure` or `file`, or take the "
    "section out"
)
_FORMS = "s3://bucket/prefix, gs://…, az://… or file:///path"
MIN_SYNC_INTERVAL = 0.1
MIN_LEVEL_INTERVAL = 1.0
MAX_LEVELS = 8
MAX_CONCURRENCY = 32
MIN_LOG_BYTES = 1 << 20


class SnapshotConfig(Section, frozen=True):
    """Ours: whole copies in the archive, from which every restore begins."""

    interval: Duration = Duration(86400)
    """Ours: between two of them, for each database that changes."""
    retention: Duration = Duration(86400)
    """Ours: how far back the archive reaches; the newest snapshot stays however old it is. At least
    `backup.retention`."""


class EncryptionConfig(Section, frozen=True):
    """Ours: encrypts what is stored, by AES-256-GCM, before it leaves the node. `litefs restore` then needs
    the key too, and `litestream restore` cannot read the archive.

    A key is 32 bytes as 64 hexadecimal digits (`openssl rand -hex 32`). One a line: the first encrypts, all
    decrypt. To change it, first add the new one as the last line on every node, then make it the first.
    """

    key_file: FilePath | None = None
    """Ours: the file that holds the keys."""
    key_env: str = ""
    """Ours: the environment variable that holds them, in place of `key-file`."""

    @property
    def enabled(self) -> bool:
        """Whether anything is encrypted."""
        return self.key_file is not None or bool(self.key_env)


class BackupConfig(Section, frozen=True):
    """Where the primary continuously copies its log to, so that any moment can be restored
    ([the archive](archive.md)). All nodes of a cluster name the same place, and no other cluster does."""

    type: str = ""
    """`file`, or `s3`, `gcs`, `azure`, which are ours; empty: what `url` says, and without one no backup.
    Go's `litefs-cloud` is refused: that service is gone."""
    path: str = ""
    """Of `file`: a directory, which every node that may become primary must reach. Of the others, ours: the
    prefix in the bucket."""
    url: str = ""
    """In place of `type`, `bucket` and `path`: `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or `file:///PATH`.
    `?endpoint=…&region=…&forcePathStyle=true` may follow, as Litestream takes them."""
    cluster: str = ""
    """Go's, of `litefs-cloud`; read and not used."""
    auth_token: str = ""
    """Go's, of `litefs-cloud`; read and not used."""
    bucket: str = ""
    """Ours: the bucket, or Azure's container."""
    endpoint: str = ""
    """Ours: the URL of a service that is not Amazon's, Google's or Microsoft's, such as MinIO's or R2's."""
    region: str = ""
    """Ours: of `s3`; without it `AWS_REGION`, or `us-east-1`."""
    force_path_style: bool | None = None
    """Ours: of `s3`: put the bucket into the path, not into the host name. Without it: if there is an
    `endpoint`."""
    access_key_id: str = ""
    """Ours: of `s3`; without it `LITESTREAM_ACCESS_KEY_ID`, `AWS_ACCESS_KEY_ID`, or the machine's role.
    Google's credentials come from `GOOGLE_APPLICATION_CREDENTIALS` or the machine."""
    secret_access_key: Secret | None = None
    """Ours: of `s3`, the secret that belongs to it, or `file:PATH`."""
    account_name: str = ""
    """Ours: of `azure`; without it `AZURE_STORAGE_ACCOUNT_NAME`."""
    account_key: Secret | None = None
    """Ours: of `azure`, or `file:PATH`; without it `AZURE_STORAGE_ACCOUNT_KEY`, or the machine's identity."""
    databases: tuple[str, ...] = ()
    """Ours: what is archived, as patterns of the shell; none: all."""
    exclude: tuple[str, ...] = ()
    """Ours: what is not, as patterns, whatever `databases` says."""
    sync_interval: Duration = Duration(1)
    """Ours: how often transactions are sent."""
    levels: tuple[Duration, ...] = (Duration(30), Duration(300), Duration(3600))
    """Ours: intervals at which files are merged into larger ones, from level 1 on; each longer than the
    one before."""
    snapshot: SnapshotConfig = SnapshotConfig()
    """Ours: whole copies."""
    retention: Duration = Duration(86400)
    """Ours: how long each single transaction stays restorable; of older ones, down to `snapshot.retention`,
    only the moments at which files end."""
    max_log_bytes: int = 4 << 30
    """Ours: as long as the archive cannot be reached, the primary keeps up to this much log per database,
    beyond `data.retention`. What is older is then left out of the archive, which goes on with a snapshot."""
    concurrency: int = 4
    """Ours: requests at a time."""
    verify_interval: Duration = Duration(0)
    """Ours: how often the primary restores each database to a scratch place and checks it; `0s`: never."""
    seed: bool = False
    """Ours: a node that starts with an empty data directory restores the databases from the archive, and
    takes what is newer from the primary."""
    encryption: EncryptionConfig = EncryptionConfig()
    """Ours: client-side keys."""

    @property
    def kind(self) -> str:
        """``file``, ``s3``, ``gcs`` or ``azure``; empty: no backup."""
        return self.type or SCHEMES.get(urlsplit(self.url).scheme, "file" if self.url else "")

    @property
    def enabled(self) -> bool:
        """Whether there is an archive."""
        return bool(self.kind)

    @property
    def location(self) -> str:
        """The archive's URL, without credentials that are keys of their own; empty: no backup."""
        if not self.enabled:
            return ""
        if self.kind == "file":
            return f"file://{quote(self.directory or '')}"
        url = urlsplit(self.url or f"{_BUCKETS[self.kind]}://{self.bucket}/{quote(self.path.strip('/'))}")
        query = dict(parse_qsl(url.query))
        if self.endpoint:
            query["endpoint"] = self.endpoint
        if self.region:
            query["region"] = self.region
        if self.force_path_style is not None:
            query["forcePathStyle"] = str(self.force_path_style).lower()
        return url._replace(query=urlencode(query)).geturl()

    @property
    def directory(self) -> str | None:
        """Of type ``file`` the directory, absolute; else None."""
        if self.kind != "file":
            return None
        url = urlsplit(self.url)
        return os.path.abspath(self.path or (unquote(url.path) if url.scheme == "file" else self.url))

    def wants(self, name: str) -> bool:
        """Whether a database of that name is archived."""
        if any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return False
        return not self.databases or any(fnmatchcase(name, pattern) for pattern in self.databases)

    @property
    def reach(self) -> Duration:
        """How far back the archive reaches (seconds)."""
        return max(self.snapshot.retention, self.retention)

    def validate(self) -> None:
        """Raises ConfigError."""
        if self.type == "litefs-cloud":
            raise ConfigError(_GONE)
        if self.type not in ("", "file", *_BUCKETS):
            raise ConfigError(f"invalid backup client type: {self.type!r}, must be file, s3, gcs or azure")
        self._validate_place()
        if not self.enabled:
            return
        if self.encryption.key_file is not None and self.encryption.key_env:
            raise ConfigError("backup.encryption: give either key-file or key-env")
        self._validate_times()
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise ConfigError(
                f"backup.concurrency must be from 1 to {MAX_CONCURRENCY}, got {self.concurrency}"
            )
        if self.max_log_bytes < MIN_LOG_BYTES:
            raise ConfigError(
                f"backup.max-log-bytes must be {MIN_LOG_BYTES} or more, got {self.max_log_bytes}"
            )

    def _validate_place(self) -> None:
        if self.url:
            found = SCHEMES.get(urlsplit(self.url).scheme)
            if found is None or self.type not in ("", found):
                raise ConfigError(
                    f"backup.url: {_without_password(self.url)!r} is no URL of "
                    + (f"type {self.type}" if self.type else f"an archive; write {_FORMS}")
                )
            if self.path or self.bucket:
                raise ConfigError("backup: give either url, or type with bucket and path")
        elif not self.type and (self.path or self.bucket):
            raise ConfigError("backup.type required: file, s3, gcs or azure")
        if self.kind == "file" and urlsplit(self.url).netloc not in ("", "localhost"):
            raise ConfigError(f"backup.url: write file:///path, got {self.url!r}")
        if self.kind == "file" and not self.path and not self.url:
            raise ConfigError("backup.path required, the directory of the archive")
        if self.kind in _BUCKETS and not (self.bucket or urlsplit(self.url).netloc):
            raise ConfigError("backup.bucket required")
        if self.endpoint and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ConfigError(f"backup.endpoint: write http:// or https://, got {self.endpoint!r}")
        if bool(self.access_key_id) != (self.secret_access_key is not None):
            raise ConfigError("backup: access-key-id and secret-access-key belong together")

    def _validate_times(self) -> None:
        if self.sync_interval < MIN_SYNC_INTERVAL:
            raise ConfigError(f"backup.sync-interval must be 100ms or more, got {self.sync_interval}")
        for name, value in (
            ("snapshot.interval", self.snapshot.interval),
            ("snapshot.retention", self.snapshot.retention),
            ("retention", self.retention),
        ):
            if value <= 0:
                raise ConfigError(f"backup.{name} must be positive, got {value}")
        if self.verify_interval < 0:
            raise ConfigError("backup.verify-interval must not be negative")
        if not 1 <= len(self.levels) <= MAX_LEVELS:
            raise ConfigError(f"backup.levels: 1 to {MAX_LEVELS} intervals, got {len(self.levels)}")
        below = Duration(0)
        for level in self.levels:
            if level < MIN_LEVEL_INTERVAL or level <= below:
                raise ConfigError(
                    f"backup.levels: each at least 1s and longer than the one before, got {level}"
                )
            below = level


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return url if parts.password is None else url.replace(f":{parts.password}@", ":…@", 1)
