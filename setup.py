"""The extension list only; every other setting is in pyproject.toml.

Each kernel names the libraries and flags that it needs in ``# distutils:`` lines at its top.
"""

from Cython.Build import cythonize
from setuptools import setup

setup(
    ext_modules=cythonize(
        "litefs/_core/*.pyx", include_path=["litefs/_core"], language_level=3, annotate=False
    )
)
