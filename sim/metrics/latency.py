"""Latencies of requests, each a formula over columns of the requests table.

The names and definitions are those of ``vllm bench serve`` (vllm/benchmarks/serve.py, ``calculate_metrics``).
"""

import numpy as np
import numpy.typing as npt

from sim.metrics.slo import Slo
from sim.record import Ints, Table
from sim.units import MS_PER_S, NS_PER_S

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NS_PER_MS = NS_PER_S // MS_PER_S


def ttft_ms(arrival_ns: Ints, first_token_ns: Ints) -> Floats:
    """Time to first token [ms], shape of the inputs [ns]."""
    return (first_token_ns - arrival_ns) / NS_PER_MS


def e2el_ms(arrival_ns: Ints, finish_ns: Ints) -> Floats:
    """End-to-end latency [ms], shape of the inputs [ns]."""
    return (finish_ns - arrival_ns) / NS_PER_MS


def tpot_ms(first_token_ns: Ints, finish_ns: Ints, output_tokens: Ints) -> Floats:
    """Mean time per output token after the first [ms]; NaN where only one was produced.

    Parameters
    ----------
    first_token_ns, finish_ns : int array, shape (n_requests,)
        [ns]
    output_tokens : int array, shape (n_requests,)
        [tokens]

    Examples
    --------
    >>> tpot_ms(np.array([1_000_000]), np.array([9_000_000]), np.array([5]))
    array([2.])
    """
    gaps = np.where(output_tokens > 1, output_tokens - 1, np.nan)
    tpot: Floats = (finish_ns - first_token_ns) / NS_PER_MS / gaps
    return tpot


def latencies(requests: Table) -> dict[str, Floats]:
    """TTFT, TPOT and E2EL of every request under ``ttft_ms``, ``tpot_ms``, ``e2el_ms``; each of shape (n_requests,).

    Of several answers sampled at once the first token is the first of any, for all come with it; the finish is the
    last one's, and TPOT counts the tokens of one answer: the pace at which the slowest of them is written.
    """
    arrival, first, finish = (requests.column(name).copy() for name in ("arrival_ns", "first_token_ns", "finish_ns"))
    return {
        "ttft_ms": ttft_ms(arrival, first),
        "tpot_ms": tpot_ms(first, finish, requests.column("output_tokens") // requests.column("n_samples")),
        "e2el_ms": e2el_ms(arrival, finish),
    }


def meets(latency_ms: dict[str, Floats], slo_class: Ints, class_names: tuple[str, ...], slo: Slo) -> Bools:
    """Which requests meet every objective of their class.

    A limit is met by equality, and a request of one token meets any TPOT, as in vLLM.

    Parameters
    ----------
    latency_ms : mapping of name to array, shape (n_requests,)
        From `latencies`.
    slo_class : int array, shape (n_requests,)
        Index into ``class_names``.
    """
    is_good = np.ones(len(slo_class), dtype=bool)
    limits_of = [slo.limits(name) for name in class_names] or [slo.limits()]
    for name, values in latency_ms.items():
        limit = np.array([np.inf if limits[name] is None else limits[name] for limits in limits_of])
        is_good &= ~(values > (limit[0] if len(limit) == 1 else limit[slo_class]))
    return is_good
