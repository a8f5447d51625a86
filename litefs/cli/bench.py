"""``litefs bench``: load a directory, and say how fast it was."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from litefs.bench.settings import (
    JOURNAL_MODES,
    LARGEST_ROW,
    LONGEST_ROUND,
    MOST_CLIENTS,
    MOST_ROUNDS,
    PAGE_SIZES,
    REPLICATING,
    SYNCHRONOUS,
    WORKLOADS,
    BenchError,
    Settings,
)
from litefs.cli.flags import Arguments, Flag, Spec, UsageError, describe, parse_flags
from litefs.config_types import Duration
from litefs.errors import ConfigError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as of a shell: 128 + SIGINT."""

_D = Settings()

_FLAGS = (
    Flag("compare", "load DIR too, in rounds that alternate", "DIR"),
    Flag("replica", "lag, catch-up: the mount of a replica on this machine", "DIR"),
    Flag("pause", "catch-up: a shell command that stops the replica before the writing", "COMMAND"),
    Flag("resume", "catch-up: a shell command that starts it again", "COMMAND"),
    Flag("journal-mode", ", ".join(JOURNAL_MODES), "MODE", _D.journal_mode),
    Flag("synchronous", ", ".join(SYNCHRONOUS), "LEVEL", _D.synchronous),
    Flag("page-size", "bytes of a page", "N", str(_D.page_size)),
    Flag("cache-size", "pages, or KiB if negative, as PRAGMA cache_size", "N", str(_D.cache_size)),
    Flag("row-size", "bytes of a row's content", "N", str(_D.row_size)),
    Flag("rows", "read, mixed, scan: rows of the table", "N", str(_D.rows)),
    Flag("batch", "batch: rows of a transaction", "N", str(_D.batch)),
    Flag("megabytes", "large: of a transaction", "N", f"{_D.megabytes:g}"),
    Flag("reads", "mixed: percentage of reads", "N", f"{_D.reads:g}"),
    Flag("clients", "processes, each with a connection", "N", str(_D.clients)),
    Flag("rate", "operations a second of all clients, 0: as fast as possible (lag: 100)", "N", "0"),
    Flag("seed", "of the rows' content and of the order of reads", "N", str(_D.seed)),
    Flag("duration", "of a round", "DURATION", str(Duration(_D.seconds))),
    Flag("rounds", "of each directory", "N", str(_D.rounds)),
    Flag("warmup", "of each round, not counted; none with -rate", "DURATION", str(Duration(_D.warmup))),
    Flag("name", "of the database that is made in DIR", "NAME", "litefs-bench.db"),
    Flag("keep", "leave the database there"),
    Flag("reuse", "read, scan: the database that an earlier run kept; on a replica too"),
    Flag("no-check", "do not read the database at the end to see that it holds what it has to"),
    Flag("awake", "keep idle CPUs from sleeping meanwhile, for figures that vary less (root)"),
    Flag("json", "print one JSON object instead of a table"),
    Flag("plot", "write plots to PATH: .svg, .png or .pdf", "PATH"),
    Flag("from", "load nothing: show the run whose -json is in PATH, as -plot", "PATH"),
)

_GO_FLAGS = (
    Flag("mode", "insert or query", "MODE"),
    Flag("journal-mode", "journal mode (default that of the database)", "MODE"),
    Flag("seed", "of the random numbers; 0: another one each time", "N", "0"),
    Flag("cache-size", "as PRAGMA cache_size", "N", "-2000"),
    Flag("iter", "number of iterations, 0: without end", "N", "0"),
    Flag("max-row-size", "bytes of a row at most", "N", "256"),
    Flag("max-rows-per-iter", "rows of a transaction at most", "N", "10"),
    Flag("iter-per-sec", "iterations a second, 0: as fast as possible", "N", "0"),
)

_WORKLOADS = "\n".join(f"  {name:<10}{summary}" for name, summary in WORKLOADS.items())

USAGE = {
    "bench": "Usage:\n\n  litefs bench [WORKLOAD] [ARGUMENTS] DIR\n\n"
    "Loads a database that it makes in DIR, on a mount or not, says how fast that was, checks that all is\n"
    "there and removes it. Ctrl-C ends it with the results so far.\n\n"
    f"Workloads (default {_D.workload}):\n\n{_WORKLOADS}\n\n"
    f"Arguments:\n\n{describe(_FLAGS)}\n\n"
    "Exit codes: 0; 1 if something failed or the check did; 2 for usage; 130 after Ctrl-C.\n\n"
    "As of Go's litefs-bench, with a line of figures each second:\n\n"
    "  litefs bench -mode insert|query [ARGUMENTS] FILE\n\n"
    f"Arguments:\n\n{describe(_GO_FLAGS)}"
}

SPECS = {
    "bench": Spec(
        tuple({flag.name: flag for flag in (*_GO_FLAGS, *_FLAGS)}.values()),
        words=tuple(WORKLOADS),
        paths=True,
    )
}


def bench(argv: Sequence[str]) -> int:
    """``litefs bench``. Raises UsageError, LiteFSError."""
    if any(word.lstrip("-").partition("=")[0] == "mode" for word in argv if word.startswith("-")):
        return _go_bench(argv)
    arguments, workload = _arguments(argv)
    plot = _plot(arguments)
    if arguments.values["from"]:
        return _show(arguments, plot)
    settings = _settings(arguments, workload)
    directories = [Path(arguments.rest[0])]
    if arguments.values["compare"]:
        directories.append(Path(arguments.values["compare"]))
    _require_sense(arguments, settings, directories)
    try:
        return _measure(arguments, settings, directories, plot)
    except KeyboardInterrupt:
        print("ERROR: interrupted before anything was measured", file=sys.stderr)
        return INTERRUPTED


def _arguments(argv: Sequence[str]) -> tuple[Arguments, str]:
    """The flags, and the workload, which may stand before or after them."""
    first = argv[0] if argv and argv[0] in WORKLOADS else ""
    arguments = parse_flags(_FLAGS, argv[1:] if first else argv)
    rest = arguments.rest
    if not first and len(rest) > 1:
        first, rest = rest[0], rest[1:]
        if first not in WORKLOADS:
            raise UsageError(f"no such workload: {first}")
    if arguments.values["from"]:
        if rest or first:
            raise UsageError("-from takes neither a workload nor a directory")
    elif len(rest) != 1:
        raise UsageError("directory required" if not rest else "too many arguments")
    return Arguments(arguments.values, arguments.switches, tuple(rest)), first or _D.workload


@dataclass(frozen=True, slots=True)
class _Range:
    """A flag whose value is a number in these bounds."""

    kind: type[int] | type[float]
    least: float
    most: float

    def parse(self, flag: str, text: str) -> Any:
        """Raises UsageError."""
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value is None or not self.least <= value <= self.most:
            what = "a number" if self.kind is float else "a whole number"
            raise UsageError(f"-{flag} {text}: {what} from {self.least:,g} to {self.most:,g}")
        return value


_NUMBERS = {
    "page-size": _Range(int, PAGE_SIZES[0], PAGE_SIZES[-1]),
    "cache-size": _Range(int, -(1 << 31), (1 << 31) - 1),
    "row-size": _Range(int, 0, LARGEST_ROW),
    "rows": _Range(int, 1, 1_000_000_000),
    "batch": _Range(int, 1, 10_000_000),
    "megabytes": _Range(float, 0.01, 100_000),
    "reads": _Range(float, 0, 100),
    "clients": _Range(int, 1, MOST_CLIENTS),
    "rate": _Range(float, 0, 10_000_000),
    "seed": _Range(int, 0, (1 << 63) - 1),
    "rounds": _Range(int, 1, MOST_ROUNDS),
}


def _settings(arguments: Arguments, workload: str) -> Settings:
    values = arguments.values
    given: dict[str, Any] = {flag: each.parse(flag, values[flag]) for flag, each in _NUMBERS.items()}
    if given["page-size"] not in PAGE_SIZES:
        raise UsageError(f"-page-size {given['page-size']}: a power of two")
    for flag, allowed in (("journal-mode", JOURNAL_MODES), ("synchronous", SYNCHRONOUS)):
        given[flag] = values[flag].upper()
        if given[flag] not in allowed:
            raise UsageError(f"-{flag} {values[flag]}: one of {', '.join(allowed)}")
    given["seconds"], given["warmup"] = _seconds("duration", values), _seconds("warmup", values)
    if not 0 < given["seconds"] <= LONGEST_ROUND:
        raise UsageError(f"-duration: more than 0s, at most {Duration(LONGEST_ROUND)}; take more rounds")
    named = {flag.replace("-", "_"): value for flag, value in given.items()}
    assert set(named) <= {field.name for field in fields(Settings)}
    return Settings(workload=workload, **named)


def _seconds(flag: str, values: dict[str, str]) -> float:
    try:
        seconds = float(Duration.parse(values[flag]))
    except ConfigError as error:
        raise UsageError(f"-{flag}: {error}") from None
    if seconds < 0:
        raise UsageError(f"-{flag} {values[flag]}: not negative")
    return seconds


def _plot(arguments: Arguments) -> Path | None:
    """Where plots go. Raises UsageError, BenchError if they cannot be drawn."""
    from litefs.bench.plot import SUFFIXES, require_matplotlib

    if not arguments.values["plot"]:
        return None
    path = Path(arguments.values["plot"])
    if path.suffix not in SUFFIXES:
        raise UsageError(f"-plot {path}: the name has to end with {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"-plot {path}: there is no such directory")
    require_matplotlib()
    return path


def _require_sense(arguments: Arguments, settings: Settings, directories: Sequence[Path]) -> None:
    """Raise UsageError for what does not go together."""
    values, two = arguments.values, settings.workload in REPLICATING
    if two != bool(values["replica"]):
        raise UsageError(f"-replica DIR is for {' and '.join(sorted(REPLICATING))}, which need it")
    if two and (settings.clients > 1 or values["compare"]):
        raise UsageError(f"{settings.workload} has one client and no -compare")
    if (values["pause"] or values["resume"]) and settings.workload != "catch-up":
        raise UsageError("-pause and -resume are for catch-up")
    if bool(values["pause"]) != bool(values["resume"]):
        raise UsageError("-pause and -resume need each other")
    if "reuse" in arguments.switches and settings.workload not in ("read", "scan"):
        raise UsageError("-reuse is for read and scan")
    if "/" in values["name"] or not values["name"]:
        raise UsageError(f"-name {values['name']}: a name without a slash")
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UsageError("-compare with the same directory")


def _measure(arguments: Arguments, settings: Settings, directories: Sequence[Path], plot: Path | None) -> int:
    """Run, print, and say how it went."""
    from litefs.bench import machine
    from litefs.bench.plot import draw
    from litefs.bench.progress import progress_bar
    from litefs.bench.result import document
    from litefs.bench.run import errors, run
    from litefs.bench.table import text
    from litefs.version import version

    values, switches = arguments.values, arguments.switches
    keeping_awake = "awake" in switches
    with machine.awake(keeping_awake), _stopping() as stop:
        about = machine.describe(keeping_awake, version() or "development build")
        with progress_bar(settings.rounds, len(directories)) as watcher:
            result, failure = run(
                settings,
                directories,
                about,
                stop=stop,
                check="no-check" not in switches,
                replica=Path(values["replica"]) if values["replica"] else None,
                pause=values["pause"],
                resume=values["resume"],
                name=values["name"],
                keep="keep" in switches,
                reuse="reuse" in switches,
                watcher=watcher,
            )
    found = document(result)
    print(json.dumps(found, indent=2) if "json" in switches else text(result), flush=True)
    if plot is not None:
        draw(found, plot)
    if failure is not None:
        raise failure
    if failed := errors(result):
        raise BenchError("; ".join(dict.fromkeys(failed)))
    return INTERRUPTED if result.interrupted else 0


def _show(arguments: Arguments, plot: Path | None) -> int:
    """Draw the plots of a run that was printed as JSON."""
    from litefs.bench.plot import draw
    from litefs.bench.result import FORMAT

    if plot is None:
        raise UsageError("-from PATH needs -plot PATH")
    source = arguments.values["from"]
    try:
        found = json.loads(Path(source).read_text("utf-8"))
    except OSError as error:
        raise BenchError(f"{source}: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BenchError(f"{source} is not what `litefs bench -json` of this version prints")
    draw(found, plot)
    return 0


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come; the second one is a KeyboardInterrupt."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    before = [signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def _go_bench(argv: Sequence[str]) -> int:
    from litefs.bench.golang import MODES, GoBench, GoSettings

    arguments = parse_flags(_GO_FLAGS, argv)
    values = arguments.values
    if values["mode"] not in MODES:
        raise UsageError(f"-mode {values['mode']}: one of {', '.join(MODES)}")
    if len(arguments.rest) != 1:
        raise UsageError("database file required" if not arguments.rest else "too many arguments")
    if values["journal-mode"] and values["journal-mode"].upper() not in JOURNAL_MODES:
        raise UsageError(f"-journal-mode {values['journal-mode']}: one of {', '.join(JOURNAL_MODES)}")
    whole = _Range(int, 0, (1 << 63) - 1)
    settings = GoSettings(
        mode=values["mode"],
        journal_mode=values["journal-mode"],
        seed=whole.parse("seed", values["seed"]),
        cache_size=_NUMBERS["cache-size"].parse("cache-size", values["cache-size"]),
        iterations=whole.parse("iter", values["iter"]),
        max_row_size=_Range(int, 1, LARGEST_ROW).parse("max-row-size", values["max-row-size"]),
        max_rows=_Range(int, 1, 10_000_000).parse("max-rows-per-iter", values["max-rows-per-iter"]),
        rate=_NUMBERS["rate"].parse("iter-per-sec", values["iter-per-sec"]),
    )
    with _stopping() as stop:
        GoBench(Path(arguments.rest[0]), settings, stop).run()
        return INTERRUPTED if stop() else 0
