"""YAML text → a msgspec Struct, strictly: what Go's yaml.v3 does with known fields only.

The document is read as nodes, not as Python values, because the type of the field decides how a scalar reads
(``hostname: 10`` is the text "10") and because every error can then name its line.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping

import msgspec
import yaml

from litefs.config_types import Duration, FileMode, FilePath, NonEmpty, Secret, Sync
from litefs.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_PARSED = (Duration, FileMode, FilePath, Secret, Sync)
"""Types that read themselves from a scalar's text."""
_NEVER_EMPTY = {FilePath, Secret}
_REFERENCE = re.compile(
    r"\$(?:\{(?P<braced>[^}]*)\}|(?P<special>[*#$@!?\-0-9])|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<open>\{))"
)
_COMPARISON = re.compile(
    r"""(?P<left>\w+)\s*(?P<operator>==|!=)\s*(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<right>\w+))"""
)

T = typing.TypeVar("T", bound=msgspec.Struct)


def expand_environment(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replace ``$V``, ``${V}``, and comparisons like ``${A == 'x'}``, ``${A != "x"}``, ``${A == B}``.

    The rules are those of Go's ``os.Expand``: unset is empty, ``$$`` is the variable named ``$`` and so
    empty, a ``$`` before anything else stays. It knows nothing of YAML and works in comments too.
    """
    values = os.environ if environment is None else environment

    def replacement(reference: re.Match[str]) -> str:
        name = (reference["braced"] or reference["special"] or reference["name"] or "").strip()
        comparison = _COMPARISON.fullmatch(name)
        if comparison is None:
            return values.get(name, "")
        right = comparison["single"] if comparison["single"] is not None else comparison["double"]
        if right is None:
            right = values.get(comparison["right"], "")
        equal = values.get(comparison["left"], "") == right
        return "true" if equal == (comparison["operator"] == "==") else "false"

    return _REFERENCE.sub(replacement, text)


def decode(text: str, model: type[T], origin: str) -> T:
    """Read one YAML document into ``model``; ``origin`` names the file in messages.

    Null is "not set", as in Go.
    Raises ConfigError with line and column: not YAML, empty, unknown or doubled key, wrong type.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark)
        raise ConfigError(f"{origin}{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: not valid YAML: nested too deeply") from None
    if node is None:
        raise ConfigError(f"{origin}: the file is empty")
    reader = _Reader(origin)
    raw = reader.value(node, model, "")
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}{_place(node.start_mark)}: expected keys and values, not {_kind(node)}")
    try:
        return msgspec.convert(raw, model, dec_hook=_parse_scalar)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _parse_scalar(kind: type, value: object) -> object:
    """msgspec's hook for the types of ``_PARSED``, which the reader has parsed already."""
    if isinstance(value, kind):
        return value
    raise NotImplementedError(kind)


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"


def _kind(node: yaml.Node) -> str:
    """What a node is, in a user's words."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{str(getattr(node, 'value', ''))!r}"


class _Reader:
    """Turns nodes into plain values for ``msgspec.convert``, guided by the types they are meant for."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._constructor = yaml.SafeLoader("")

    def value(self, node: yaml.Node, expected: object, path: str) -> object:
        """Plain value of ``node`` for a field of type ``expected`` at the dotted ``path``."""
        choices = _alternatives(expected)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, choices, path)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, choices, path)
        return self._scalar(node, choices, path)

    def _mapping(self, node: yaml.MappingNode, choices: list[object], path: str) -> dict[str, object]:
        model = next((c for c in choices if isinstance(c, type) and issubclass(c, msgspec.Struct)), None)
        if model is None:
            self._fail(node, path, "expected a plain value, not a mapping")
        hints = typing.get_type_hints(model)
        fields = {field.encode_name: hints[field.name] for field in msgspec.structs.fields(model)}
        seen: set[str] = set()
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            where = f"{path}.{key}" if path else key
            if key not in fields:
                self._unknown(key_node, key, where, fields)
            if key in seen:
                self._fail(key_node, where, "the key is given twice")
            seen.add(key)
            if value_node.tag != f"{_TAG}null" or _NEVER_EMPTY & {*_alternatives(fields[key])}:
                found[key] = self.value(value_node, fields[key], where)
        return found

    def _sequence(self, node: yaml.SequenceNode, choices: list[object], path: str) -> list[object]:
        container = next((c for c in choices if typing.get_origin(c) in (list, tuple)), None)
        if container is None:
            self._fail(node, path, "expected a plain value, not a list")
        item = typing.get_args(container)[0]
        return [self.value(child, item, f"{path}[{i}]") for i, child in enumerate(node.value)]

    def _scalar(self, node: yaml.Node, choices: list[object], path: str) -> object:
        text = str(node.value)
        for kind in choices:
            if kind is str:
                return text
            if isinstance(kind, type) and issubclass(kind, _PARSED):
                return self._parsed(node, kind, text, path)
        # A node is of no type that a field can have: it stays one if it is not what its tag or its look says,
        # as 2001-02-30 is no date. PyYAML lets every kind of error through then.
        value: object = node
        with contextlib.suppress(Exception):
            value = self._constructor.construct_object(node)
        wanted = tuple(kind for kind in choices if isinstance(kind, type))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            named = [_NAMES.get(kind, "a mapping or list") for kind in choices if kind is not types.NoneType]
            self._fail(node, path, f"expected {' or '.join(named)}, got {text!r}")
        return value

    def _parsed(
        self, node: yaml.Node, kind: type[Duration | FileMode | NonEmpty | Sync], text: str, path: str
    ) -> object:
        if kind is Duration and node.tag != f"{_TAG}str":
            self._fail(node, path, f'expected a duration with a unit, as in "{text}s", got {text!r}')
        try:
            return kind.parse(text)
        except ConfigError as error:
            self._fail(node, path, str(error))

    def _unknown(self, node: yaml.Node, key: str, path: str, known: Mapping[str, object]) -> typing.NoReturn:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        prefix = path[: len(path) - len(key)]
        hint = f"; did you mean {prefix + near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        raise ConfigError(f"{self._origin}{_place(node.start_mark)}: unknown key {path!r}{hint}")

    def _fail(self, node: yaml.Node, path: str, problem: str) -> typing.NoReturn:
        at = f"{path}: " if path else ""
        raise ConfigError(f"{self._origin}{_place(node.start_mark)}: {at}{problem}")


_NAMES: dict[object, str] = {int: "a whole number", bool: "true or false"}


def _alternatives(expected: object) -> list[object]:
    """Members of a union, or the type itself."""
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return list(typing.get_args(expected))
    return [expected]
