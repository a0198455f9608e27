"""kvtwin's simulator: a discrete-event twin of an LLM serving engine.

>>> import sim
>>> result = sim.simulate("scenario=synthetic", "scenario.n_requests=20")
>>> len(result.requests)
20
"""

from sim.run import simulate

__all__ = ["simulate"]
