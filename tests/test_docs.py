"""docs/: what it tells to type works, what it shows as litefs.yml is one, its made pages are current, and its
links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import msgspec
import pytest
import yaml

from litefs.config import Config, parse
from tests.support.netns import Network
from tests.support.processes import ROOT, end, spawn
from tools import reference

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"(?m)^```(\w*) ?(\S*)\n((?:.*\n)*?)^```$")
GUIDE_SECONDS = 170
"""A bound, not an expectation: the machine may be busy with other things."""


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """The fenced blocks of a page: language, the word after it, content."""
    return BLOCK.findall(path.read_text())


# -- the commands of "Getting started" --------------------------------------------------------------------


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what the page shows, in which ``…`` stands for any text of a line."""
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    return re.fullmatch(pattern, printed) is not None


@pytest.mark.timeout(GUIDE_SECONDS + 30)
def test_getting_started(tmp_path: Path, network: Network) -> None:
    """All commands, in one shell and on a machine of their own, each with what the page shows below it."""
    steps: list[tuple[str, str | None]] = []
    for language, word, content in blocks(DOCS / "getting-started.md"):
        if language == "sh" and word != "install":
            steps.append((content, None))
        elif language == "text":
            steps[-1] = (steps[-1][0], content)
    script = ["set -e", f"export PATH={shlex.quote(str(tmp_path))}:$PATH PYTHONPATH={shlex.quote(str(ROOT))}"]
    for number, (commands, _) in enumerate(steps):
        script += [f"exec > {tmp_path}/{number}.out 2>&1", commands]
    (tmp_path / "guide.sh").write_text("\n".join(script))
    litefs = tmp_path / "litefs"
    litefs.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m litefs.cli.main "$@"\n')
    litefs.chmod(0o755)
    command = network.host("guide").command(["bash", str(tmp_path / "guide.sh")])
    process = spawn(command, cwd=tmp_path, stdin=subprocess.DEVNULL)
    try:
        code = process.wait(GUIDE_SECONDS)
    finally:
        end(process)
    printed = [
        path.read_text() for number in range(len(steps)) if (path := tmp_path / f"{number}.out").exists()
    ]
    assert code == 0, (
        f"after {len(printed)} of {len(steps)} steps:\n{steps[len(printed) - 1][0]}\n{printed[-1]}"
    )
    for (commands, shown), text in zip(steps, printed, strict=True):
        assert shown is None or matches(shown, text), f"{commands}\nprinted\n{text}\nand not\n{shown}"
    assert not (tmp_path / "litefs-try").exists()


def test_the_readme_says_the_same() -> None:
    guide, readme = blocks(DOCS / "getting-started.md"), (ROOT / "README.md").read_text()
    (install,) = [text for _, word, text in guide if word == "install"]
    assert all(f"    {line}\n" in readme for line in install.splitlines())
    assert {text for language, _, text in guide if language == "yaml"} == {
        text for language, _, text in BLOCK.findall(readme) if language == "yaml"
    }


# -- litefs.yml -------------------------------------------------------------------------------------------

KEYS = {field.encode_name for field in msgspec.structs.fields(Config)}
OTHER_YAML = {"groups", "scrape_configs", "securityContext"}
"""Top-level keys of YAML that is no litefs.yml: of Prometheus and of Kubernetes."""
ENVIRONMENT = {"HOSTNAME": "h", "POD_NAME": "p", "CONSUL_URL": "http://c:8500", "LITEFS_TOKEN": "t"}


def shown_configurations() -> list[tuple[str, str]]:
    """Every YAML block of the pages and the README, by where it is."""
    found = []
    for path in (*PAGES, ROOT / "README.md"):
        for number, (language, _, text) in enumerate(blocks(path)):
            if language == "yaml":
                found.append((f"{path.name} #{number}", text))
    return found


@pytest.mark.parametrize(
    ("where", "text"), shown_configurations(), ids=[w for w, _ in shown_configurations()]
)
def test_what_is_shown_as_litefs_yml_is_accepted(
    where: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a file is completed by a lease."""
    content = yaml.safe_load(text)
    if content.keys() <= OTHER_YAML:
        return
    assert content.keys() <= KEYS
    for name in ("FLY_APP_NAME", "FLY_REGION", "PRIMARY_REGION"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("FLY_CONSUL_URL", "http://c:8500")
    if "lease" not in content:
        text += "lease: {type: static}\n"
    elif "type" not in content["lease"]:
        text = text.replace("lease:\n", "lease:\n  type: static\n")
    parse(text, where, ENVIRONMENT)


# -- the site ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_made_pages_are_current(name: str) -> None:
    assert (DOCS / name).read_text() == reference.page(name), "run: python tools/reference.py"


def test_the_site_builds_and_every_link_leads_to_a_page_and_a_heading(tmp_path: Path) -> None:
    """mkdocs.yml makes a dead link, a missing anchor and a page without an entry a warning, so an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.stem for path in tmp_path.glob("*.html")}
    assert {path.stem for path in PAGES} <= built
    page = (tmp_path / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//(?!www\.mkdocs\.org)[^\"]*\"", page)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_other_pages_lead_to_files(name: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text())
    missing = [one for one in targets if "://" not in one and not (ROOT / unquote(one)).exists()]
    assert not missing


def test_the_architecture_names_every_module_and_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    units = [
        path
        for path in (ROOT / "litefs").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    named = {
        f"{path.name}/" if path.is_dir() else path.name for path in units if not path.name.startswith("__")
    }
    assert not [name for name in named if f"`{name}`" not in text and not name.startswith("config_")]
