"""Imports go one way (ARCHITECTURE.md), and siblings do not import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "litefs"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_core"}),
    frozenset({"clock", "types", "errors", "meters", "mountinfo", "version"}),
    frozenset({"client", "trace"}),
    frozenset({"config_types", "bench"}),
    frozenset({"config_yaml"}),
    frozenset({"config_backup", "config_lease", "config_http", "config_proxy", "config_sections"}),
    frozenset({"config", "fromfiles"}),
    frozenset({"logs", "sqlite", "ltx", "tls", "tokens"}),
    frozenset({"store", "link"}),
    frozenset({"capture", "stream", "apply", "backup"}),
    frozenset({"fs", "cluster", "notify", "proxy", "server", "supervise"}),
    frozenset(
        {
            "archiving",
            "copies",
            "exposure",
            "figures",
            "guard",
            "halt",
            "housekeeping",
            "lockview",
            "mountprobe",
            "replica",
            "security",
            "seeding",
            "starting",
            "timetravel",
            "verifying",
        }
    ),
    frozenset({"rolechange", "takeback"}),
    frozenset({"eventfeed", "forwarding", "leading", "overview"}),
    frozenset({"telling"}),
    frozenset({"answers"}),
    frozenset({"proxying"}),
    frozenset({"application"}),
    frozenset({"node"}),
    frozenset({"cli"}),
)
"""From the bottom up; a unit may import any layer below its own."""

_RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}


def unit_of(module: str) -> str:
    """``litefs.store.paths`` → ``store``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported_units(path: Path) -> Iterator[tuple[str, int]]:
    """Units of litefs that a file imports, at any depth of the code, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [node.module or ""]
            if node.module == "litefs":
                names = [f"litefs.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "litefs" and unit_of(name):
                yield unit_of(name), node.lineno


def allowed(importer: str, imported: str) -> bool:
    """Whether unit ``importer`` may import unit ``imported``."""
    return importer == imported or _RANK[imported] < _RANK[importer]


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_unit_has_a_layer() -> None:
    units = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()}
    assert units <= set(_RANK), f"without a layer: {sorted(units - set(_RANK))}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    importer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    wrong = [
        f"{path.name}:{line}: {importer} imports {imported}"
        for imported, line in imported_units(path)
        if not allowed(importer, imported)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("cli", "node", True),
        ("store", "_core", True),
        ("store", "store", True),
        ("store", "stream", False),
        ("stream", "apply", False),
        ("node", "cli", False),
        ("sqlite", "ltx", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, expected: bool) -> None:
    assert allowed(importer, imported) is expected
