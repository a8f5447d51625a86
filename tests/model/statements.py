"""Random SQL over one schema. Nothing in it depends on time or chance when it runs: blobs are computed."""

from __future__ import annotations

import random

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b BLOB)",
    "CREATE INDEX IF NOT EXISTS ta ON t(a)",
    "CREATE TABLE IF NOT EXISTS w(k TEXT PRIMARY KEY, v) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS p(id INTEGER PRIMARY KEY, u UNIQUE)",
    "CREATE TABLE IF NOT EXISTS c(id INTEGER PRIMARY KEY, p REFERENCES p(id) ON DELETE CASCADE)",
    "CREATE VIRTUAL TABLE IF NOT EXISTS f USING fts5(x)",
)
SPILL_ROWS = 60
BIG_BYTES = 300_000


class Statements:
    """Draws from a random number generator that its caller owns."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def _blob(self, size: int) -> str:
        word = f"{self._rng.randrange(1 << 16):04x}"
        return f"CAST(substr(replace(hex(zeroblob({size // 4 + 1})),'00','{word}'),1,{size}) AS BLOB)"

    def _rows(self, count: int) -> str:
        return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{count})"

    def change(self, schema: str = "main", *, may_fail: bool = True) -> str:
        """One statement that writes, perhaps to no effect; without ``may_fail`` no constraint stops it."""
        rng = self._rng
        key = rng.randrange(400)
        made = [
            f"INSERT INTO {schema}.t(a,b) VALUES({rng.randrange(1000)},{self._blob(rng.randrange(1, 3000))})",
            f"INSERT OR REPLACE INTO {schema}.t VALUES({key},'text',{self._blob(rng.randrange(900))})",
            f"UPDATE {schema}.t SET b={self._blob(rng.randrange(1, 2500))} WHERE id%{rng.randrange(3, 40)}=1",
            f"UPDATE {schema}.t SET a=a WHERE id={key}",
            f"DELETE FROM {schema}.t WHERE id%{rng.randrange(2, 9)}=0",
            f"INSERT OR REPLACE INTO {schema}.w VALUES('k{key % 60}',{self._blob(rng.randrange(1500))})",
            f"DELETE FROM {schema}.w WHERE k>'k{rng.randrange(60)}'",
            f"INSERT OR IGNORE INTO {schema}.p VALUES({rng.randrange(40)},{rng.randrange(40)})",
            f"DELETE FROM {schema}.p WHERE id={rng.randrange(40)}",
            f"INSERT INTO {schema}.f(x) VALUES('w{rng.randrange(50)} w{rng.randrange(50)} common')",
            f"DELETE FROM {schema}.f WHERE rowid%{rng.randrange(2, 9)}=0",
        ]
        if may_fail:
            made += [
                f"INSERT INTO {schema}.p SELECT id+100, u+{rng.randrange(3)} FROM {schema}.p",
                f"INSERT INTO {schema}.c(p) VALUES({rng.randrange(40)})",
                f"UPDATE {schema}.p SET u={rng.randrange(40)} WHERE id<{rng.randrange(40)}",
            ]
        return rng.choice(made)

    def big_change(self, schema: str = "main") -> str:
        """One that needs more pages than a small cache holds."""
        rng = self._rng
        if rng.random() < 0.2:
            blob = self._blob(BIG_BYTES)
            return f"INSERT OR REPLACE INTO {schema}.t VALUES({rng.randrange(9)},'big',{blob})"
        if rng.random() < 0.3:
            return f"UPDATE {schema}.t SET b={self._blob(700)}"
        rows = self._rows(SPILL_ROWS)
        return f"{rows} INSERT INTO {schema}.t(a,b) SELECT i,{self._blob(1800)} FROM n"

    def query(self, schema: str = "main") -> str:
        """One that reads."""
        rng = self._rng
        return rng.choice(
            [
                f"SELECT count(*), total(length(b)), max(id) FROM {schema}.t",
                f"SELECT id, a, length(b) FROM {schema}.t ORDER BY a, id LIMIT {rng.randrange(1, 20)}",
                f"SELECT k, length(v) FROM {schema}.w ORDER BY k LIMIT 5",
                f"SELECT p.id, count(c.id) FROM {schema}.p LEFT JOIN {schema}.c ON c.p=p.id GROUP BY p.id",
                f"SELECT rowid, x FROM {schema}.f WHERE f MATCH 'w{rng.randrange(50)}' ORDER BY rowid",
                f"SELECT name FROM {schema}.sqlite_schema ORDER BY name",
                f"PRAGMA {schema}.quick_check",
                f"PRAGMA {schema}.page_count",
                f"PRAGMA {schema}.freelist_count",
            ]
        )

    def definition(self) -> str:
        """One that changes the schema, often in vain."""
        rng = self._rng
        name, other = f"x{rng.randrange(4)}", f"x{rng.randrange(4)}"
        return rng.choice(
            [
                f"CREATE TABLE {name}(a, b, c)",
                f"CREATE TABLE {name} AS SELECT id, a FROM t",
                f"DROP TABLE {name}",
                f"ALTER TABLE {name} ADD COLUMN d{rng.randrange(3)}",
                f"ALTER TABLE {name} RENAME TO {other}",
                f"ALTER TABLE {name} DROP COLUMN b",
                f"CREATE INDEX {name}i ON {name}(a)",
                f"DROP INDEX {name}i",
                f"CREATE VIEW {name}v AS SELECT * FROM t",
                f"DROP VIEW {name}v",
                f"CREATE TRIGGER {name}r AFTER DELETE ON t BEGIN DELETE FROM w WHERE k='k'||old.id; END",
                f"DROP TRIGGER {name}r",
                f"CREATE TEMP TABLE temporary{name} AS SELECT * FROM t",
                f"INSERT INTO t(a) SELECT a FROM temporary{name}",
                "REINDEX t",
                "ANALYZE main",
                "DROP INDEX ta",
                "CREATE INDEX ta ON t(a)",
            ]
        )

    def setting(self) -> str:
        """A pragma without which databases would all be alike; none that the history has to keep track of."""
        rng = self._rng
        return rng.choice(
            [
                f"PRAGMA synchronous={rng.choice(('OFF', 'NORMAL', 'FULL', 'EXTRA'))}",
                f"PRAGMA wal_autocheckpoint={rng.choice((0, 1, 5, 1000))}",
                f"PRAGMA journal_size_limit={rng.choice((-1, 0, 4096, 50_000))}",
                f"PRAGMA cache_size={rng.choice((1, 10, 2000))}",
                f"PRAGMA mmap_size={rng.choice((0, 0, 65536, 1 << 30))}",
                f"PRAGMA auto_vacuum={rng.choice(('NONE', 'FULL', 'INCREMENTAL'))}",
                f"PRAGMA incremental_vacuum({rng.randrange(1, 20)})",
                f"PRAGMA user_version={rng.randrange(1 << 20)}",
                f"PRAGMA application_id={rng.randrange(1 << 20)}",
                f"PRAGMA foreign_keys={rng.choice(('ON', 'OFF'))}",
                f"PRAGMA secure_delete={rng.choice(('ON', 'OFF', 'FAST'))}",
                f"PRAGMA temp_store={rng.choice(('FILE', 'MEMORY'))}",
                "PRAGMA checkpoint_fullfsync=ON",
                "PRAGMA data_version",
                "PRAGMA journal_mode",
                "PRAGMA locking_mode",
                "PRAGMA integrity_check",
            ]
        )
