"""How many replicas must hold a commit before its client is told: ``replication`` of litefs.yml, as both
processes use it."""

from __future__ import annotations

from fnmatch import fnmatchcase

import msgspec


class SyncRule(msgspec.Struct, frozen=True):
    """``replicas`` for the databases whose names match ``pattern`` (fnmatch, case as it is)."""

    pattern: str
    replicas: int


class SyncRules(msgspec.Struct, frozen=True):
    """``replicas`` is what applies where no rule of ``databases`` matches; the first that does counts.

    ``timeout``: seconds after which a replica that does not acknowledge is left out. ``degrade``: with too
    few replicas commits go on without them, instead of being refused.
    """

    replicas: int = 0
    databases: tuple[SyncRule, ...] = ()
    timeout: float = 2.0
    degrade: bool = False

    def required(self, name: str) -> int:
        """How many replicas must hold a commit of that database; 0: none, it replicates asynchronously."""
        for rule in self.databases:
            if fnmatchcase(name, rule.pattern):
                return rule.replicas
        return self.replicas

    @property
    def active(self) -> bool:
        """Whether any database may replicate synchronously."""
        return self.replicas > 0 or any(rule.replicas > 0 for rule in self.databases)
