"""A launcher for Ray: a sweep's points on the cores of this machine, or of a cluster.

hydra-ray-launcher, the plugin there is, pins a cloudpickle that joblib's has left behind, so kvtwin brings one of its
own. A point is a task that Ray starts again where its worker is lost; what it leaves is complete or absent, and a point
that is done says so. So a lost worker costs a retry, and the table is that of a serial sweep to the byte.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher

from sim.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig


class OnRay(Launcher):
    """Runs points as Ray's tasks.

    Parameters
    ----------
    address : str or None
        Of a cluster's head, as ``ray.init`` takes it (``auto``, ``ray://head:10001``); None starts one here.
    num_cpus : int or None
        Cores of a cluster started here; None takes all.
    cpus_per_point : float
        What a point occupies; a simulation is one thread.
    max_retries : int
        How often a point is started again whose worker was lost.
    runtime_env : mapping
        For workers on machines that do not see this one's folders, as ``ray.init`` takes it.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: int | None = None,
        cpus_per_point: float = 1.0,
        max_retries: int = 3,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        self.address, self.num_cpus, self.cpus_per_point = address, num_cpus, cpus_per_point
        self.max_retries, self.runtime_env = max_retries, dict(runtime_env or {})

    def setup(self, *, hydra_context: Any, task_function: Any, config: "DictConfig") -> None:
        """What Hydra gives a launcher."""
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence["JobReturn"]:
        """Run all points; in their order what each returned.

        Raises
        ------
        ConfigError
            If Ray is not installed or not reached, or loses a point's worker more often than it may.
        """
        try:
            import ray
        except ImportError as error:
            raise ConfigError("hydra/launcher=ray needs the package ray: install kvtwin[ray]") from error
        from hydra.core.singleton import Singleton
        from omegaconf import open_dict

        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
        is_ours = not ray.is_initialized()
        if is_ours:
            self._start(ray)
        try:
            shared = ray.put((self.context, self.config, self.function, Singleton.get_state(), os.getcwd()))
            task = ray.remote(run_remotely).options(num_cpus=self.cpus_per_point, max_retries=self.max_retries)
            jobs = [task.remote(shared, i, list(one)) for i, one in enumerate(job_overrides, initial_job_idx)]
            returned: Sequence[JobReturn] = ray.get(jobs)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            words = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"Ray lost a point more than {self.max_retries} times; done ones stay: {words}"
            ) from error
        finally:
            if is_ours:
                ray.shutdown()
        return returned

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        here = {} if self.address else {"num_cpus": self.num_cpus, "include_dashboard": False}
        try:
            ray.init(
                address=self.address or "local",
                runtime_env=self.runtime_env,
                log_to_driver=False,
                logging_level="error",
                **here,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            words = str(error).strip().splitlines()[0]
            raise ConfigError(f"hydra.launcher.address={self.address} is not reached: {words}") from error


def run_remotely(shared: Any, number: int, overrides: list[str]) -> "JobReturn":
    """One point, in a worker of Ray's: what `hydra.core.utils.run_job` makes of it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict

    context, config, function, state, where = shared
    os.chdir(where)  # traces are named as from where the sweep was started
    setup_globals()
    Singleton.set_state(state)
    point = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(point):
        point.hydra.job.id, point.hydra.job.num = f"{point.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(point)
    return run_job(
        task_function=function,
        config=point,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
