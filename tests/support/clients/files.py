"""Plain file operations on request, so that pytest itself never touches a mount that may hang."""

from __future__ import annotations

import os
import stat

from tests.support.clients.protocol import serve


def read(path: str) -> str:
    """The content, each byte as one Latin-1 character."""
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def write(path: str, content: str) -> None:
    with open(path, "wb") as file:
        file.write(content.encode("latin-1"))


def describe(path: str) -> dict[str, int]:
    status = os.stat(path)
    return {"size": status.st_size, "mode": stat.S_IMODE(status.st_mode), "inode": status.st_ino}


def main() -> None:
    serve(
        {
            "read": read,
            "write": write,
            "list": lambda path: sorted(os.listdir(path)),
            "exists": os.path.exists,
            "describe": describe,
            "unlink": os.unlink,
            "rename": lambda path, target: os.rename(path, target),
            "mkdir": os.mkdir,
            "blocks": lambda path: os.statvfs(path)[1:5],  # f_frsize, f_blocks, f_bfree, f_bavail
        }
    )


if __name__ == "__main__":
    main()
