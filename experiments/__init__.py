"""Scripts that measure. What a user has set for figures and bars changes none of their results."""

import os

os.environ["MATPLOTLIBRC"] = os.devnull
for name in [name for name in os.environ if name.startswith("TQDM_")]:
    del os.environ[name]
