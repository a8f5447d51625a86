"""The extension list, and the commit that is built, for ``litefs version``; all else is in pyproject.toml.

Each kernel names the libraries and flags that it needs in ``# distutils:`` lines at its top.
"""

import os
import subprocess
from pathlib import Path

from Cython.Build import cythonize
from setuptools import setup
from setuptools.command.build_py import build_py


def commit() -> str:
    """``LITEFS_COMMIT`` of the environment, for builds that have no repository; else what git says, or ""."""
    if given := os.environ.get("LITEFS_COMMIT"):
        return given
    root = Path(__file__).resolve().parent
    if not (root / ".git").exists():  # git would ask the directories above
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


class BuildWithCommit(build_py):
    """Puts the commit into what is built; the sources stay as they are."""

    def run(self) -> None:
        """As of setuptools."""
        super().run()
        found = commit()
        if found and not self.editable_mode:
            Path(self.build_lib, "litefs", "COMMIT").write_text(f"{found}\n", encoding="ascii")


setup(
    cmdclass={"build_py": BuildWithCommit},
    ext_modules=cythonize(
        "litefs/_core/*.pyx", include_path=["litefs/_core"], language_level=3, annotate=False
    ),
)
