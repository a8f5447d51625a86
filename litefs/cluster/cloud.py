"""The lease's object in S3, Google Cloud Storage or Azure, through obstore.

Credentials come from where those services' tools look: environment, service account, the machine's role.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from litefs.cluster.object import Stored
from litefs.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

POLL_SECONDS = 1.0


class CloudStore:
    """Implements :class:`litefs.cluster.object.ObjectStore`; ``seconds`` bounds each request.

    A version is a JSON object: what obstore wants to know for a conditional write.
    """

    poll = POLL_SECONDS
    errors: tuple[type[Exception], ...] = (BaseError,)

    def __init__(self, url: str, key: str, seconds: float) -> None:
        """Raises ConfigError for a URL that names no object store."""
        self.name = f"{url.rstrip('/')}/{key}"
        self._key = key
        try:
            self._store: ObjectStore = from_url(
                url,
                client_options={
                    # Only where the endpoint that was configured is plain: those of the services are not.
                    "allow_http": True,
                    "timeout": timedelta(seconds=seconds),
                    "connect_timeout": timedelta(seconds=seconds),
                },
                # A repeated write would fail against its own first try; the lease looks before it repeats.
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=seconds)},
            )
        except (BaseError, ValueError) as error:
            raise ConfigError(f"lease.object.url: {str(error).splitlines()[0]}") from None

    def read(self) -> Stored | None:
        """See the protocol."""
        try:
            found = obstore.get(self._store, f"{self._key}/beat")
        except FileNotFoundError:
            return None
        return Stored(_version(found.meta), bytes(found.bytes()))

    def swap(self, version: str, term: int, data: bytes) -> str | None:
        """See the protocol."""
        mode: Any = json.loads(version) if version else "create"
        try:
            return _version(obstore.put(self._store, f"{self._key}/beat", data, mode=mode))
        except (AlreadyExistsError, PreconditionError):
            return None
        except FileNotFoundError:
            if not version:
                raise  # no such bucket
            return None

    def create(self, name: str, data: bytes) -> bytes:
        """See the protocol."""
        path = f"{self._key}/{name}"
        try:
            obstore.put(self._store, path, data, mode="create")
        except (AlreadyExistsError, PreconditionError):
            return bytes(obstore.get(self._store, path).bytes())
        return data


def _version(attributes: Any) -> str:
    """S3 and Azure go by the entity tag, Google by its version."""
    return json.dumps({key: attributes[key] for key in ("e_tag", "version") if attributes.get(key)})
