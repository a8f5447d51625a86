"""The third-party suites: which packages, and how each is told to keep its databases in a given directory.

Every version is pinned: a suite that changes by itself shows nothing about us. The tests come from the source
packages, except apsw's, which its wheel carries (its source package fetches SQLite's source when pip looks at
it). What runs is the part of a suite that opens databases by a path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REQUIREMENTS = (
    "pytest==9.2.0",
    "apsw==3.54.1.0",
    "SQLAlchemy==2.1.9",
    "greenlet==3.5.6",
    "Django==5.2.19",
    "sqlite-utils==4.2.1",
    "hypothesis==6.170.15",
    "diskcache==5.6.3",
)
"""What the suites' own environment holds."""

SOURCES = ("SQLAlchemy==2.1.9", "Django==5.2.19", "sqlite-utils==4.2.1", "diskcache==5.6.3")
"""Source packages whose tests are unpacked."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run of a suite works."""

    sources: Path
    """The unpacked source packages."""
    databases: Path
    """The directory under test: native or on the mount; the suite's current directory."""
    private: Path
    """A native directory of this run, for what is not a database."""

    def source(self, name: str) -> Path:
        """A source package's directory, by the beginning of its name. Raises FileNotFoundError."""
        found = [path for path in self.sources.iterdir() if path.name.lower().startswith(f"{name}-")]
        if len(found) != 1:
            raise FileNotFoundError(f"{name}: {found} in {self.sources}")
        return found[0]


Command = Callable[[Place, bool], list[str]]


@dataclass(frozen=True, slots=True)
class Suite:
    """``command(place, quick)`` gives the words after OUT for suites_record.py."""

    name: str
    command: Command
    seconds: float
    """Time limit of one run; of a quick run a third."""
    temporary_files_there: bool = False
    """Whether the suite asks for a temporary directory and puts its databases in it."""
    explained: dict[str, str] = field(default_factory=dict)
    """Tests that must differ on any mount of ours, by their full name, and why (docs/compatibility.md)."""


def _apsw(_place: Place, quick: bool) -> list[str]:
    names = ("WAL", "BlobIO", "Backup", "LockedBusy", "VFS", "Savepoint") if quick else ()
    return ["unittest-apart", "apsw.tests.__main__", *(f"-k{name}" for name in names)]


_DJANGO_QUICK = ("transactions", "bulk_create", "schema")
_DJANGO = (
    *_DJANGO_QUICK,
    *("aggregation", "backends", "basic", "cache", "constraints", "custom_pk", "datatypes", "dates"),
    *("db_functions", "delete", "expressions", "expressions_window", "fixtures", "force_insert_update"),
    *("get_or_create", "indexes", "inspectdb", "introspection", "lookup", "m2m_through", "many_to_many"),
    *("migrate_signals", "migrations", "model_fields", "model_inheritance", "multiple_database", "ordering"),
    *("queries", "raw_query", "select_for_update", "select_related", "sessions_tests", "test_utils"),
    *("transaction_hooks", "update", "update_only_fields"),
)


def _django(mode: str) -> Command:
    def command(place: Place, quick: bool) -> list[str]:
        databases = {}
        for alias in ("default", "other"):
            path = str(place.databases / f"{mode}-{alias}.db")
            databases[alias] = {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": path,
                "TEST": {"NAME": path},
                "OPTIONS": {"timeout": 20, "init_command": f"PRAGMA journal_mode={mode}"},
            }
        (place.private / "suite_settings.py").write_text(
            f"DATABASES = {databases!r}\nSECRET_KEY = 'none'\nUSE_TZ = False\n"
            "PASSWORD_HASHERS = ['django.contrib.auth.hashers.MD5PasswordHasher']\n"
            "DEFAULT_AUTO_FIELD = 'django.db.models.AutoField'\n"
        )
        script = str(place.source("django") / "tests" / "runtests.py")
        options = ("--settings=suite_settings", "--parallel=1", "--noinput", "--verbosity=1")
        return ["unittest", script, *options, *(_DJANGO_QUICK if quick else _DJANGO)]

    return command


def _pytest(source: Path, *words: str) -> list[str]:
    configuration = source / "pyproject.toml"
    if not configuration.exists():
        configuration = source / "setup.cfg"
    return ["pytest", "-q", "-rN", f"-c{configuration}", f"--rootdir={source}", "-pno:cacheprovider", *words]


_SQLALCHEMY_QUICK = ("dialect/test_suite.py",)
_SQLALCHEMY = (
    *_SQLALCHEMY_QUICK,
    "dialect/sqlite",
    "engine",
    *(
        f"orm/test_{part}.py"
        for part in ("transaction", "unitofwork", "unitofworkv2", "versioning", "session")
    ),
    *(f"sql/test_{part}.py" for part in ("insert_exec", "query", "resultset", "returning", "update")),
)


def _sqlalchemy(place: Place, quick: bool) -> list[str]:
    source = place.source("sqlalchemy")
    parts = _SQLALCHEMY_QUICK if quick else _SQLALCHEMY
    # The suite opens its databases by bare names: in the current directory.
    return _pytest(source, *(str(source / "test" / part) for part in parts), "--dburi=sqlite:///querytest.db")


def _sqlite_utils(place: Place, quick: bool) -> list[str]:
    source = place.source("sqlite_utils")
    tests = source / "tests"
    chosen = [tests / "test_create.py", tests / "test_wal.py"] if quick else [tests]
    return _pytest(source, *map(str, chosen), f"--basetemp={place.databases / 'pytest'}")


def _diskcache(place: Place, quick: bool) -> list[str]:
    source = place.source("diskcache")
    names = ("core", "deque") if quick else ("core", "deque", "fanout", "index", "recipes")
    return _pytest(source, *(str(source / "tests" / f"test_{name}.py") for name in names), "-oaddopts=")


_SCRAMBLED = "the suite's VFS scrambles whole files, which on the mount are no databases then"

SUITES = (
    Suite(
        "apsw",
        _apsw,
        seconds=900,
        explained={f"__main__.APSW.{test}": _SCRAMBLED for test in ("testVFS", "testVFSWithWAL")},
    ),
    Suite("django-delete", _django("delete"), seconds=1500),
    Suite("django-wal", _django("wal"), seconds=1500),
    Suite("sqlalchemy", _sqlalchemy, seconds=900),
    Suite("sqlite-utils", _sqlite_utils, seconds=600),
    Suite("diskcache", _diskcache, seconds=600, temporary_files_there=True),
)
QUICK = ("apsw", "django-wal", "sqlalchemy")
"""The suites of a quick run, with parts of each."""
