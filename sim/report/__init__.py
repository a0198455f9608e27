"""What people see of a run: files, a page, a table, comparisons; made from a `Result` or read back from disk."""

from sim.report.files import write
from sim.report.terminal import table

__all__ = ["table", "write"]
