"""Random transactions that keep the sum over one table constant, as SQL text for every kind of client."""

from __future__ import annotations

import random

ACCOUNTS = 64
TOTAL = ACCOUNTS * 1000
MAX_ROW_BYTES = 3000
SPILL_ROWS = 60


def schema() -> list[str]:
    """Statements that create and fill the tables, in one transaction."""
    values = ",".join(f"({number},1000)" for number in range(ACCOUNTS))
    return [
        "BEGIN IMMEDIATE",
        "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)",
        "CREATE TABLE item(id INTEGER PRIMARY KEY, writer TEXT, data BLOB)",
        "CREATE INDEX item_writer ON item(writer, id)",
        f"INSERT INTO account VALUES {values}",
        "COMMIT",
    ]


INVARIANT = "SELECT sum(balance) || '/' || count(*) FROM account"
INVARIANT_HOLDS = f"{TOTAL}/{ACCOUNTS}"


class Workload:
    """The transactions of one writer; the same seed gives the same ones."""

    def __init__(self, seed: int, writer: str) -> None:
        self._random = random.Random(f"{seed}/{writer}")
        self._writer = writer

    def next(self) -> list[str]:
        """One transaction, or one of the rare maintenance statements that stand alone."""
        draw = self._random.random()
        if draw < 0.004:
            return ["VACUUM"]
        if draw < 0.02:
            mode = self._random.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
            return [f"PRAGMA wal_checkpoint({mode})"]
        body = [self._statement() for _ in range(self._random.choice([1, 1, 1, 2, 3]))]
        if draw < 0.04:
            body += self._spill()
        if draw > 0.85:
            body += ["SAVEPOINT s", self._transfer(), self._statement()]
            body += ["ROLLBACK TO s"] if draw > 0.92 else []
            body += ["RELEASE s"]
        ending = "ROLLBACK" if self._random.random() < 0.05 else "COMMIT"
        return ["BEGIN IMMEDIATE", *body, ending]

    def _transfer(self) -> str:
        source, target = self._random.sample(range(ACCOUNTS), 2)
        amount = self._random.randint(1, 50)
        return (
            f"UPDATE account SET balance = balance + CASE id WHEN {source} THEN -{amount} ELSE {amount} END "
            f"WHERE id IN ({source},{target})"
        )

    def _insert(self) -> str:
        size = self._random.randint(1, MAX_ROW_BYTES)
        return f"INSERT INTO item(writer,data) VALUES('{self._writer}',randomblob({size}))"

    def _statement(self) -> str:
        draw = self._random.random()
        if draw < 0.4:
            return self._transfer()
        if draw < 0.65:
            return self._insert()
        choice = f"(SELECT id FROM item WHERE writer='{self._writer}' ORDER BY id LIMIT 1 OFFSET "
        choice += f"{self._random.randint(0, 30)})"
        if draw < 0.8:
            size = self._random.randint(1, MAX_ROW_BYTES)
            return f"UPDATE item SET data=randomblob({size}) WHERE id={choice}"
        return f"DELETE FROM item WHERE id={choice}"

    def _spill(self) -> list[str]:
        """More pages than the cache (10 pages, set by the writer) holds, most of them deleted again."""
        count = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{SPILL_ROWS})"
        return [
            f"{count} INSERT INTO item(writer,data) SELECT '{self._writer}-spill',randomblob(2000) FROM n",
            f"DELETE FROM item WHERE writer='{self._writer}-spill'",
        ]
