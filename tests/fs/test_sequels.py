"""What follows a commit that nobody announced, while nobody publishes it and when somebody does: the log decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from litefs.store.paths import DataDir
from tests.fs.harness import Fs, serving
from tests.fs.replay import rebuilt
from tests.fs.unpublished import publishing
from tests.support.unpublished import (
    CASES,
    ROWS,
    SEQUELS,
    MakeClient,
    Scene,
    attempt,
    expected,
    insist,
    last_close,
    truncate,
    unannounced,
    write_again,
)


def logged(fs: Fs, name: str, scratch: Path) -> list[list[object]]:
    """The rows of the database as its log alone has it."""
    db = rebuilt(DataDir(fs.data).database_dir(name).log, scratch / "rebuilt.db")
    try:
        return [list(row) for row in db.execute(ROWS)]
    finally:
        db.close()


@pytest.mark.parametrize("sequel", SEQUELS, ids=lambda sequel: sequel.__name__)
def test_it_is_refused_or_sees_the_commit(
    sequel: Callable[[Scene], None], tmp_path: Path, make_client: MakeClient
) -> None:
    with serving(tmp_path) as fs:
        for cause, who in CASES:
            name = f"{cause}-{who}.db"
            print(name)
            with unannounced(make_client, str(fs.mount / name), cause, who) as scene:
                assert logged(fs, name, tmp_path) == expected(scene)
                done = attempt(sequel, scene)
                further = [] if sequel in (truncate, last_close) else ["next"]
                after = expected(scene, *further) if done else expected(scene)
                assert logged(fs, name, tmp_path) == after, "nothing of the log was undone or written over"
                with publishing(fs, name):
                    if not done:
                        insist(sequel, scene)
                    assert scene.rows() == logged(fs, name, tmp_path) == expected(scene, *further)
                    if scene.survivor is not None and sequel is not last_close:
                        insist(write_again, scene)
                        assert scene.rows() == logged(fs, name, tmp_path) == expected(scene, *further, "last")


def test_a_new_fs_process_recovers_it(tmp_path: Path, make_client: MakeClient) -> None:
    for cause, who in CASES[1::2] + CASES[:1]:
        name = f"{cause}-{who}.db"
        print(name)
        path = str(tmp_path / "mnt" / name)
        with serving(tmp_path) as fs, unannounced(make_client, path, cause, who) as scene:
            fs.process.kill()
            fs.process.wait(5)
        with serving(tmp_path) as fs:
            scene.holder = make_client("sql", "sqlite3")
            assert scene.rows() == logged(fs, name, tmp_path) == expected(scene)
            scene.holder.call("open", path=scene.path)
            scene.holder.call("execute", statement="INSERT INTO t(a) VALUES('next')")
            scene.holder.call("close")
            assert scene.rows() == logged(fs, name, tmp_path) == expected(scene, "next")
            fs.stop()
