"""Scripts that measure. What a user has set for figures and bars changes none of their results."""

import os

os.environ["MATPLOTLIBRC"] = os.devnull
for name in [name for name in os.environ if name.startswith("TQDM_")]:
    del os.environ[name]

import utils  # noqa: E402, F401  (before torch, for the scripts too)
