"""One published number beside ours."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """What was published, what kvtwin finds, and how far apart they may be."""

    what: str
    published: float | str
    ours: float | str
    tolerance: float = 0.0  # absolute; a published text must be met exactly
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus published, None where they are texts."""
        if isinstance(self.published, str) or isinstance(self.ours, str):
            return None
        return self.ours - self.published

    @property
    def is_met(self) -> bool:
        """Whether ours is within the tolerance."""
        if self.difference is None:
            return self.ours == self.published
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True, slots=True)
class Skipped:
    """A table that cannot be made here, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A published table: its title, its source, and rows or the reason why there are none."""

    title: str
    source: str
    rows: list[Row] | Skipped
