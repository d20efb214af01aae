import utils  # noqa: F401  (before torch, for the scripts too)
