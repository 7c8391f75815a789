"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """The cores that this process is allowed on, which containers and job schedulers limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
