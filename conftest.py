"""Surroundings of the tests and of the notebook's kernel under ``pytest --nbval``, which inherits
them."""

import os
import tempfile

os.environ.pop("TQDM_DISABLE", None)  # the log's bars are tested
os.environ.setdefault(
    "CIFAR10_ROOT", os.path.join(os.devnull, "cifar10")
)  # cannot exist: nothing is downloaded
results = tempfile.TemporaryDirectory(prefix="ultimus-")
os.environ["ULTIMUS_OUTPUT"] = results.name  # no test writes to the working folder
