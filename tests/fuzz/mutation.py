"""Damage that knows a little of how formats look: bits, lengths, cuts, splices.

A mutation is a list of steps of three numbers each, so that Hypothesis, a seeded generator and a
coverage-guided fuzzer can all make them, and the first can shrink them.
"""

from __future__ import annotations

from collections.abc import Sequence

Step = tuple[int, int, int]
"""(kind, place, argument); all are taken modulo what makes sense."""

KINDS = 11
MAX_SIZE = 1 << 18
"""Bytes; a longer result is cut."""

_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF,
          (1 << 40) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1)  # fmt: skip
"""Numbers at which lengths, signs and widths go wrong."""
_WIDTHS = (1, 2, 4, 8)
_PIECE = 64
_WORDS = (bytes(8), b"\xff" * 8, b"\x80" * 10)
"""For formats without words: runs that mean much to integers of varying length."""


def mutate(data: bytes, steps: Sequence[Step], others: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """``data`` after the steps; ``others`` are inputs that pieces can come from, ``words`` mean something."""
    out = bytearray(data)
    for kind, place, argument in steps:
        if kind % KINDS == KINDS - 1:
            _insert(out, place % (len(out) + 1), argument, words or _WORDS)
        else:
            _apply(out, kind % KINDS, place % (len(out) + 1), argument, others)
        del out[MAX_SIZE:]
    return bytes(out)


def _apply(out: bytearray, kind: int, at: int, argument: int, others: Sequence[bytes]) -> None:
    length = argument % _PIECE + 1
    if kind == 0 and at < len(out):
        out[at] ^= 1 << argument % 8
    elif kind == 1 and at < len(out):
        out[at] = argument & 0xFF
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        del out[at : at + length]
    elif kind == 4:
        out[at:at] = out[at : at + length]
    elif kind == 5:
        out[at : at + length] = bytes(len(out[at : at + length]))
    elif kind == 6:
        _set_edge(out, at, argument)
    elif kind == 7:
        _add(out, at, argument)
    elif kind == 8:
        other = others[argument % len(others)]
        start = argument // len(others) % (len(other) + 1)
        # At the same place as well as anywhere: fields then still line up.
        out[at:] = other[at:] if argument & 1 else other[start:]
    elif kind == 9:
        source = argument % (len(out) + 1)
        out[at : at + 16] = out[source : source + 16]


def _insert(out: bytearray, at: int, argument: int, words: Sequence[bytes]) -> None:
    """Put a word in, or in place of what is there, perhaps many times."""
    word = words[argument // 64 % len(words)]
    word *= 500 if argument % 64 == 0 else 1
    out[at : at + (len(word) if argument & 1 else 0)] = word


def _set_edge(out: bytearray, at: int, argument: int) -> None:
    """Put an interesting number over a field, in either byte order."""
    width = _WIDTHS[argument % 4]
    value = _EDGES[argument // 8 % len(_EDGES)] & ((1 << 8 * width) - 1)
    out[at : at + width] = value.to_bytes(width, "big" if argument & 4 else "little")


def _add(out: bytearray, at: int, argument: int) -> None:
    """Make a number a little bigger or smaller."""
    width = _WIDTHS[argument % 4]
    order = "big" if argument & 4 else "little"
    if at + width <= len(out):
        value = int.from_bytes(out[at : at + width], order) + argument // 8 % 33 - 16  # type: ignore[arg-type]
        out[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
