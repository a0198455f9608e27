"""Builds kvtwin: plain Python, or with ``KVTWIN_COMPILED=1`` the same source with its hot loop compiled to C by mypyc.

`make fast` makes a compiled one in an environment of its own, at three times the speed; the source tree always runs
as plain Python. `tests/compiled.py` holds the two equal, byte by byte.
"""

import os

from setuptools import setup

HOT = """
    batching/chunked batching/continuous batching/plan batching/queue batching/request_level clock cost/attention
    cost/calibrated cost/dense cost/iteration cost/roofline cost/table engine fleet kv/allocator kv/below
    kv/by_class kv/cache kv/contiguous kv/eviction/arc kv/eviction/blank_first kv/eviction/fifo kv/eviction/gdsf
    kv/eviction/lfu kv/eviction/lru kv/eviction/queue kv/eviction/s3fifo kv/eviction/unit kv/hierarchical kv/idle
    kv/ladder kv/link kv/move kv/paged kv/part kv/pool kv/prediction kv/preemption kv/prefix kv/pruned
    kv/reservation kv/retention kv/tiers ledger record request router samples sequence step units
"""


def compiled() -> list:
    """The modules that every iteration runs through, as extensions."""
    from mypyc.build import mypycify

    extensions = mypycify([f"sim/{module}.py" for module in HOT.split()], opt_level="2")
    for extension in extensions:  # a * b + c rounds twice, as in Python: gcc would fuse it where the processor can
        extension.extra_compile_args.append("-ffp-contract=off")
    return extensions


setup(ext_modules=compiled() if os.environ.get("KVTWIN_COMPILED") == "1" else [])
