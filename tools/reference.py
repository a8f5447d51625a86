"""Writes the pages of docs/ that are made from the code.

python tools/reference.py            writes those that changed
python tools/reference.py --check    changes nothing; exits with 1 if one is not current
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import command_reference, config_reference  # noqa: E402

PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": config_reference.render,
    "commands.md": command_reference.render,
}


def page(name: str) -> str:
    """A page of docs/ as it should be."""
    return f"<!-- Made by tools/reference.py; do not edit. -->\n{PAGES[name]()}"


def main() -> int:
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, say what is not current")
    check = parser.parse_args().check
    stale = False
    for name in PAGES:
        path, wanted = ROOT / "docs" / name, page(name)
        if path.exists() and path.read_text(encoding="utf-8") == wanted:
            continue
        stale = True
        if check:
            print(f"docs/{name} is not current: run python tools/reference.py", file=sys.stderr)
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote docs/{name}")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
