"""Build step of the package: compile the C programs next to the sources that use them.

Everything declarative is in pyproject.toml; what is compiled, and how, is in src/sandfork/native/build.py.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

BUILD = Path(__file__).parent / "src/sandfork/native/build.py"


class BuildWithNative(build_py):
    """`build_py`, then the native targets into the built package."""

    def run(self) -> None:
        super().run()
        compile_all = runpy.run_path(str(BUILD))["compile_all"]
        compile_all(Path(self.build_lib) / "sandfork/native/bin")


class LinuxDistribution(Distribution):
    """A wheel holding machine code must say for which platform it is."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithNative}, distclass=LinuxDistribution)
