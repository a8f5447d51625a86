"""A database rebuilt from the primary's log as it grows: the state at every position, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from litefs.ltx.decoder import decode
from litefs.store.paths import DatabaseDir
from litefs.store.reader import LogReader
from litefs.store.sums import SumsFile
from litefs.types import START
from tests.model.content import Content, content_of_image

READ_BYTES = 8 << 20


class Replayed:
    """Follows the log of one database. It reads the data directory, never the mount."""

    def __init__(self, directory: DatabaseDir, image: Path) -> None:
        """``image``: a file of our own that takes the pages."""
        self._image = image
        self._image.write_bytes(b"")
        self._sums = SumsFile(directory.sums)
        self._reader = LogReader(directory.log)
        self._began = False
        self.txid = 0
        self.content: Content = content_of_image(image)

    @property
    def current(self) -> bool:
        """Whether the database is still the one that this follows."""
        return self._sums.is_current()

    @property
    def behind(self) -> bool:
        """Whether there are records that were not read."""
        return bool(self._sums.sums.snapshot()[0] > self.txid)

    def advance(self) -> Iterator[Content]:
        """The content after each record that is new. Raises LiteFSError for a log that cannot be read."""
        tip = self._sums.sums.snapshot()[0]
        if tip > self.txid and not self._began:
            assert self._reader.seek(START), "the log does not begin at the beginning"
            self._began = True
        while tip > self.txid and (entries := self._reader.read(tip, READ_BYTES)):
            for entry in entries:
                with entry.open() as stream:
                    record = decode(stream.read())
                size = record.header.page_size
                with self._image.open("r+b") as file:
                    for index, pgno in enumerate(memoryview(record.pgnos).cast("I")):
                        file.seek((pgno - 1) * size)
                        file.write(record.images[index * size : (index + 1) * size])
                    file.truncate(record.header.commit * size)
                self.txid = entry.txid_max
                self.content = content_of_image(self._image)
                yield self.content

    def close(self) -> None:
        """Let go of log and checksums."""
        self._reader.close()
        self._sums.close()
