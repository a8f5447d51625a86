"""The page on litefs.yml, from its schema: every key with its type, its default and its docstring.

A key's meaning is the string below it in litefs/config*.py; "Ours:" at its beginning marks what Go LiteFS
does not have. ``tools/reference.py`` writes the page.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator

import msgspec

from litefs.config import Config
from litefs.config_types import Duration, FileMode, FilePath, Secret, Sync

OURS = "Ours:"

INTRODUCTION = """\
# Configuration

`litefs.yml` is looked for as {search}, or given by `-config PATH`.
Every key of Go LiteFS 0.5 is read, with its meaning and default; what is marked *ours* is an addition. An
unknown key is an error, and so is a value of another type. `litefs config check` shows what is in force.

- `$VAR` and `${{VAR}}` are replaced by the environment before the file is read, in comments too; a variable
  that is not set is empty. `${{A == 'x'}}` and `${{A != B}}` give `true` or `false`. `-no-expand-env` turns
  this off.
- A duration is a number with a unit: `500ms`, `10s`, `1m30s`, `2h`. Zero needs one too: `0s`.
- A list is written `[a, b]`, or one entry a line after `- `.

`lease.type` is needed; all else has a default. [Getting started](getting-started.md) has whole files.
"""

_TYPES: dict[object, str] = {
    bool: "true or false",
    int: "number",
    str: "text",
    Duration: "duration",
    FileMode: "octal mode",
    FilePath: "path",
    Secret: "text, or `file:PATH`",
    Sync: "`off`, `any` or a number",
}


class MissingText(Exception):
    """A key without a docstring."""


def texts(section: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each field of a section, by the field's Python name."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(below.value.value).split()).replace("``", "`")
    return found


def meaning(section: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> tuple[str, bool]:
    """What a key means, and whether it is ours. Raises MissingText."""
    try:
        text = texts(section)[field.name]
    except KeyError:
        raise MissingText(f"{section.__name__}.{field.name} has no docstring below it") from None
    return without_mark(text), text.startswith(OURS)


def without_mark(text: str) -> str:
    """A docstring as a sentence, without "Ours:"."""
    text = text.removeprefix(OURS).strip()
    return text[:1].upper() + text[1:]


def section_of(kind: object) -> type[msgspec.Struct] | None:
    """The section that a field of this type holds, itself or in a list; None for a plain value."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for part in typing.get_args(kind) if (found := section_of(part))), None)


def type_text(kind: object) -> str:
    """A type in a user's words."""
    if kind in _TYPES:
        return _TYPES[kind]
    arguments = [part for part in typing.get_args(kind) if part not in (types.NoneType, Ellipsis)]
    if typing.get_origin(kind) is tuple:
        return f"list of {'entries' if section_of(kind) else f'{type_text(arguments[0])}s'}"
    return " or ".join(type_text(part) for part in arguments)


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """A field's default as it is written in YAML, in a cell of a table."""
    default = field.default
    if default is msgspec.NODEFAULT or default is None or default in ("", ()):
        return "required" if default is msgspec.NODEFAULT else "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return "`off`" if default == Sync(0) and isinstance(default, Sync) else f"`{default}`"


def fields(section: type[msgspec.Struct]) -> Iterator[tuple[msgspec.structs.FieldInfo, object]]:
    """The fields of a section with their types."""
    hints = typing.get_type_hints(section)
    for field in msgspec.structs.fields(section):
        yield field, hints[field.name]


def table(section: type[msgspec.Struct], path: str) -> Iterator[str]:
    """The keys of one section, a row each; those that are sections themselves come after it."""
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for field, kind in fields(section):
        text, ours = meaning(section, field)
        inner = section_of(kind)
        if inner is not None and isinstance(kind, type):
            continue
        name = f"{path}.{field.encode_name}" if path else field.encode_name
        marked = f"*Ours.* {text}" if ours else text
        yield f"| `{name}` | {type_text(kind)} | {default_text(field)} | {marked} |".replace("\n", " ")


def sections(section: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """A section and all below it, with their dotted paths; ``[]`` follows the name of a list."""
    yield path, section
    for field, kind in fields(section):
        inner = section_of(kind)
        if inner is not None:
            name = f"{path}.{field.encode_name}" if path else field.encode_name
            yield from sections(inner, name if isinstance(kind, type) else f"{name}[]")


def render() -> str:
    """The whole page. Raises MissingText."""
    search = ", ".join(f"`{path}`" for path in Config.SEARCH_PATH)
    lines = [INTRODUCTION.format(search=search)]
    for path, section in sections(Config):
        lines.append(f"## `{path}`" if path else "## Top level")
        if path:
            text = inspect.cleandoc(section.__doc__ or "").replace("``", "`")
            lines += ["", f"*Ours.* {without_mark(text)}" if text.startswith(OURS) else text]
        lines += ["", *table(section, path), ""]
    return "\n".join(lines)
