"""``hydra/launcher=ray``: Hydra takes plugins from this package alone."""

from sim.remote import OnRay


class RayLauncher(OnRay):
    """`sim.remote.OnRay`, under the name that Hydra asks for."""
