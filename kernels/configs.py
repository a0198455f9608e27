"""Tile shapes of the attention kernels, by architecture and head dimension.

Every entry compiles without register spills into the shared memory of its architecture; the test suite checks that
ahead of time. The sm_90 shapes follow from the compiler's register and shared-memory report, not from a timing: no
run on a GPU has chosen between them yet. A run that does is named beside the entry it changes.
"""

from typing import NamedTuple, TypeVar

from torch import cuda
from torch import device as Device

T = TypeVar("T")


class Tiles(NamedTuple):
    """How one program of a kernel is cut and scheduled."""

    block_m: int  # query rows (tokens x heads of a KV group); decode pads its group to at least this
    block_n: int  # keys per inner-loop iteration
    n_warps: int
    n_stages: int  # depth of the software pipeline


PREFILL: dict[tuple[str, int], Tiles] = {
    ("sm_90", 64): Tiles(128, 64, 8, 3),
    ("sm_90", 128): Tiles(128, 64, 8, 3),
    ("sm_90", 256): Tiles(128, 32, 8, 3),
    ("sm_80", 64): Tiles(128, 64, 8, 3),
    ("sm_80", 128): Tiles(128, 32, 8, 3),
    ("sm_80", 256): Tiles(64, 32, 8, 2),
    ("sm_89", 64): Tiles(128, 64, 8, 3),
    ("sm_89", 128): Tiles(128, 32, 8, 3),
    ("sm_89", 256): Tiles(64, 32, 8, 2),
}
DECODE: dict[tuple[str, int], Tiles] = {
    ("sm_90", 64): Tiles(16, 64, 4, 4),
    ("sm_90", 128): Tiles(16, 64, 4, 3),
    ("sm_90", 256): Tiles(16, 64, 4, 3),
    ("sm_80", 64): Tiles(16, 64, 4, 4),
    ("sm_80", 128): Tiles(16, 64, 4, 3),
    ("sm_80", 256): Tiles(16, 32, 4, 3),
    ("sm_89", 64): Tiles(16, 64, 4, 3),
    ("sm_89", 128): Tiles(16, 32, 4, 3),
    ("sm_89", 256): Tiles(16, 32, 4, 2),
}
QUANT_DECODE: dict[tuple[str, int], Tiles] = {  # unpacking costs registers, so fewer keys at once
    (arch, head_dim): Tiles(16, 32, 4 if head_dim < 256 else 8, 4)
    for arch in ("sm_90", "sm_80", "sm_89")
    for head_dim in (64, 128, 256)
}
RESIDENT: dict[tuple[str, int], int] = {
    ("sm_90", 64): 4,
    ("sm_90", 128): 3,
    ("sm_90", 256): 1,
    ("sm_80", 64): 3,
    ("sm_80", 128): 2,
    ("sm_80", 256): 2,
    ("sm_89", 64): 2,
    ("sm_89", 128): 2,
    ("sm_89", 256): 2,
}
"""Programs of the decode kernel that a multiprocessor holds at once: what its registers and shared memory allow, by the
compiler's report. The test suite works it out again ahead of time."""
FALLBACK = "sm_89"  # the least shared memory per program of the three, so its shapes fit newer devices too


def architecture(device: Device | str) -> str:
    """Name of a device's architecture, ``sm_90`` for a Hopper; a CPU (the interpreter) is treated as one."""
    if Device(device).type != "cuda":
        return "sm_90"
    major, minor = cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def padded(head_dim: int) -> int:
    """Smallest power of two that holds a head's channels: Triton's tiles are powers of two."""
    return 1 << (head_dim - 1).bit_length()


def tiles(table: dict[tuple[str, int], T], device: Device | str, head_dim: int) -> T:
    """Entry of one of the tables above for a device; unknown architectures get the smallest shapes."""
    key = (architecture(device), padded(head_dim))
    return table.get(key) or table[FALLBACK, key[1]]


def n_resident(device: Device | str, head_dim: int) -> int:
    """Decode programs that a device runs at once; 8 in the interpreter, which runs one, so that pieces are cut."""
    if Device(device).type != "cuda":
        return 8
    n_multiprocessors: int = cuda.get_device_properties(device).multi_processor_count
    return n_multiprocessors * tiles(RESIDENT, device, head_dim)
