"""Surroundings of the tests and of the notebook's kernel under ``pytest --nbval``, which inherits
them."""

import os
import tempfile
from pathlib import Path

results = tempfile.TemporaryDirectory(prefix="ultimus-")
for name in [*os.environ]:
    if name.startswith("TQDM_") or name == "MPLBACKEND":
        del os.environ[name]  # the log's bars are tested, and the notebook shows its figures
os.environ |= {
    "CIFAR10_ROOT": f"{os.devnull}/cifar10",  # cannot exist: no download
    "ULTIMUS_OUTPUT": results.name,  # no test writes to the working folder
    "MATPLOTLIBRC": os.devnull,  # from here on: no settings of the user
    "IPYTHONDIR": f"{results.name}/ipython",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def pytest_configure(config):
    """Name nbval's file in full: in pyproject.toml it would be relative to the working folder."""
    if not config.option.nbval_sanitize_with:
        path = Path(__file__).with_name("tests") / "nbval_sanitize.cfg"
        config.option.nbval_sanitize_with = str(path)
