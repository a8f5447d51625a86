"""From a URL, or the configuration, to the target of an archive.

::

    /PATH, PATH, file:///PATH           a directory
    s3://BUCKET/PREFIX                  ?endpoint=URL&region=NAME&forcePathStyle=true|false
    gs://BUCKET/PREFIX                  ?endpoint=URL
    az://CONTAINER/PREFIX, abs://…      ?endpoint=URL; ACCOUNT@CONTAINER names the account

These are the forms that Litestream takes. Credentials: those of ``TargetOptions``, then
``LITESTREAM_ACCESS_KEY_ID`` and ``LITESTREAM_SECRET_ACCESS_KEY``, then what the services' own tools look at
(``AWS_*``, ``GOOGLE_*``, ``AZURE_*``), then the machine's role. A connection is unencrypted only if the
endpoint that was given begins with ``http:``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from litefs.backup.directory import DirectoryTarget
from litefs.backup.target import Target
from litefs.config_backup import SCHEMES, BackupConfig
from litefs.config_types import Secret
from litefs.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from litefs.backup.bucket import BucketTarget

_QUERY = {"endpoint", "region", "forcepathstyle"}
_WITHOUT_MEANING = {"signpayload", "requirecontentmd5", "concurrency", "partsize"}
"""Of Litestream's; what is written is the same without."""
_AWS_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What a URL does not say. ``key_file`` and ``key_env``: where the keys are, if the archive is encrypted.
    ``seconds``: of one request, None: the default."""

    key_file: str | None = None
    key_env: str = ""
    access_key_id: str = ""
    secret_access_key: Secret | None = None
    account_name: str = ""
    account_key: Secret | None = None
    seconds: float | None = None


def open_target(url: str, options: TargetOptions = TargetOptions()) -> Target:
    """The archive at a URL, or in a directory; nothing is asked of it yet. Raises ConfigError."""
    parts = urlsplit(url)
    kind = SCHEMES.get(parts.scheme, "file" if "://" not in url else "")
    target: Target
    if kind == "file":
        target = DirectoryTarget(_directory(url, parts))
    elif kind:
        target = _bucket(kind, parts, options)
    else:
        raise ConfigError(f"no archive can be at {parts.scheme}://: write s3://, gs://, az:// or file:///")
    if options.key_file is None and not options.key_env:
        return target
    # Only now: it brings the package for encryption.
    from litefs.backup.sealed import Keys, SealedTarget

    keys = Keys.load(options.key_file, options.key_env)
    assert keys is not None
    return SealedTarget(target, keys)


def target_of(config: BackupConfig) -> Target:
    """The archive of ``backup``, which must be enabled. Raises ConfigError."""
    return open_target(config.location, options_of(config))


def options_of(config: BackupConfig) -> TargetOptions:
    """What ``backup`` says beside the place."""
    return TargetOptions(
        key_file=config.encryption.key_file,
        key_env=config.encryption.key_env,
        access_key_id=config.access_key_id,
        secret_access_key=config.secret_access_key,
        account_name=config.account_name,
        account_key=config.account_key,
    )


def _directory(url: str, parts: SplitResult) -> Path:
    if parts.scheme != "file":
        return Path(url).absolute()
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ConfigError(f"write file:///path, got {url!r}")
    return Path(unquote(parts.path)).absolute()


def _bucket(kind: str, parts: SplitResult, options: TargetOptions) -> BucketTarget:
    """A target in an object store."""
    bucket = parts.netloc.rpartition("@")[2]
    if not bucket:
        raise ConfigError(f"{parts.scheme}://: the name of the bucket is missing")
    query = _query(parts)
    prefix = unquote(parts.path).strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ConfigError(f"{parts.path}: cannot be the prefix of an archive")
    endpoint = _endpoint(query.get("endpoint", ""))
    from obstore.exceptions import BaseError

    from litefs.backup.bucket import AZURE_TIMESTAMP, S3_TIMESTAMP, SECONDS, BucketTarget

    def connect(times: dict[str, Any], retry: Any) -> ObjectStore:
        from obstore.store import AzureStore, GCSStore, S3Store

        plain = endpoint.startswith("http://")
        if kind == "s3":
            config = _s3(bucket, query, endpoint, options, os.environ)
            plain = str(config.get("endpoint", "")).startswith("http://")
        client: Any = {**times, "allow_http": plain}
        if kind == "s3":
            return S3Store(bucket, **config, client_options=client, retry_config=retry)
        if kind == "gcs":
            base: Any = {"base_url": endpoint} if endpoint else {}
            return GCSStore(bucket, **base, client_options=client, retry_config=retry)
        azure = _azure(parts, endpoint, options)
        return AzureStore(bucket, **azure, client_options=client, retry_config=retry)

    name = f"{parts.scheme}://{bucket}/{prefix}".rstrip("/")
    try:
        return BucketTarget(
            connect,
            name,
            prefix,
            flat=kind == "s3",
            timestamp=AZURE_TIMESTAMP if kind == "azure" else S3_TIMESTAMP,
            seconds=options.seconds or SECONDS,
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from None


def _query(parts: SplitResult) -> dict[str, str]:
    """The parameters by their names in lower case, without dashes. Raises ConfigError."""
    found = {}
    for name, value in parse_qsl(parts.query):
        plain = name.lower().replace("-", "").replace("_", "")
        if plain in _QUERY:
            found[plain] = value
        elif plain not in _WITHOUT_MEANING:
            raise ConfigError(
                f"{parts.scheme}://…: unknown parameter {name!r}; known: endpoint, region, forcePathStyle"
            )
    return found


def _endpoint(text: str) -> str:
    """With a scheme: TLS where none is given. Raises ConfigError."""
    if not text:
        return ""
    url = text if "://" in text else f"https://{text}"
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ConfigError(f"endpoint: write http:// or https:// and a host, got {text!r}")
    return url.rstrip("/")


def _s3(
    bucket: str, query: dict[str, str], endpoint: str, options: TargetOptions, environment: Mapping[str, str]
) -> dict[str, Any]:
    """obstore's settings for S3."""
    config: dict[str, Any] = {}
    named = endpoint or next((environment[name] for name in _AWS_ENDPOINTS if environment.get(name)), "")
    style = query.get("forcepathstyle", "").lower()
    # Amazon prefers the bucket in the host's name, where its certificate covers no dots; others in the path.
    hosted = style == "false" if style else not named and "." not in bucket
    config["virtual_hosted_style_request"] = hosted
    if named:
        url = urlsplit(named)
        config["endpoint"] = f"{url.scheme}://{bucket}.{url.netloc}{url.path}" if hosted else named
    region = query.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    config["region"] = region or REGION
    key = options.access_key_id or environment.get("LITESTREAM_ACCESS_KEY_ID")
    own = _value("secret-access-key", options.secret_access_key)
    secret = own or environment.get("LITESTREAM_SECRET_ACCESS_KEY")
    if key and secret:
        config |= {"access_key_id": key, "secret_access_key": secret}
    return config


def _azure(parts: SplitResult, endpoint: str, options: TargetOptions) -> dict[str, Any]:
    """obstore's settings for Azure."""
    config: dict[str, Any] = {}
    account = options.account_name or (unquote(parts.username) if parts.username else "")
    key = _value("account-key", options.account_key) or os.environ.get("LITESTREAM_AZURE_ACCOUNT_KEY")
    if account:
        config["account_name"] = account
    if key:
        config["account_key"] = key
    if endpoint:
        config["endpoint"] = endpoint
    return config


def _value(name: str, secret: Secret | None) -> str:
    """A secret as it is, or out of its file. Raises ConfigError."""
    if secret is None:
        return ""
    if secret.path is None:
        return str(secret)
    try:
        return Path(secret.path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"backup.{name}: cannot read {secret.path}: {error}") from None
