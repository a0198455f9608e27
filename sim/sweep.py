"""After a sweep: one table and one page that compare its points."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class CompareSweep(Callback):
    """Called by Hydra when all jobs of a multirun have returned."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Compare the runs that finished, if there are two or more."""
        from rich.console import Console

        from sim.report.compare import compare_task

        folder = Path(config.hydra.sweep.dir)
        if len(list(folder.glob("*/manifest.json"))) > 1:
            compare_task(dir=str(folder), out=folder, console=Console())
