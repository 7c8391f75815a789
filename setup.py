"""The step of a build that pyproject.toml can't declare: conf/ goes into the package."""

from pathlib import Path
from shutil import copytree, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """An editable install has no copy: it reads conf/ of the checkout."""

    def run(self) -> None:
        if not self.editable_mode:
            package = Path(self.build_lib, "cocoseg")
            rmtree(package, ignore_errors=True)  # a file that is gone must not return from an earlier build
            copytree("conf", package / "conf")
            (package / "conf" / "__init__.py").touch()  # for Hydra's pkg://cocoseg.conf
        super().run()


setup(cmdclass={"build_py": BuildWithConf})
