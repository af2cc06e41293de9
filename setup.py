"""Puts conf/ into the wheel as experiments/conf; everything else is said in pyproject.toml."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """The suite finds its configs beside the repository, or inside the package if it was installed from a
    wheel.
    """

    def run(self) -> None:
        """Copies the packages, then the configs."""
        super().run()
        if not self.editable_mode:
            copytree("conf", Path(self.build_lib, "experiments", "conf"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
