"""After a sweep: one table and one page of its points."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class CompareSweep(Callback):
    """Called by Hydra when all jobs of a multirun have returned."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Compare the runs that finished, if there are two or more; draw the map of points that belong to one."""
        from rich.console import Console

        from sim.report.compare import compare_task
        from sim.report.crossover import FILE, write_map

        folder, console = Path(config.hydra.sweep.dir), Console()
        if len(list(folder.glob("*/manifest.json"))) > 1:
            compare_task(dir=str(folder), out=folder, console=console)
        if len(list(folder.glob(f"*/{FILE}"))) > 1:
            console.print(write_map(folder))
            console.print(f"Page: {folder / 'swap_or_recompute.html'}", soft_wrap=True)
