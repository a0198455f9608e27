"""Which experts tokens go to: how many of them a step needs, and how many tokens their ranks get.

With a skew of 0 every token draws its experts at random, all alike. Above 0 experts are unlike as in NVIDIA's
aiconfigurator tables, whose skews are 1.01 and 1.2: their loads are drawn from a density in proportion to x^-skew
between one token and most of them, and rounded. Here their quantiles stand for the draw.
"""

from math import ceil

MOST_OF_TOKENS = 0.8  # the most that one expert may draw, before loads are brought to their sum
FEW_LOADS = (0.01, 2.0)  # the range where there are no more choices than experts
"""Source of both: aiconfigurator, the collector's power_law_logits."""


def loads(n_tokens: int, n_taken: float, n_experts: int, skew: float) -> list[int]:
    """Tokens of each expert under a power law, most first.

    Examples
    --------
    >>> loads(8, 2, 4, 1.2)
    [8, 5, 2, 1]
    """
    total = n_tokens * n_taken
    low, high = (1.0, MOST_OF_TOKENS * n_tokens) if total > n_experts else FEW_LOADS
    power = 1.0 - skew
    drawn = []
    for i in range(n_experts):
        share = 1.0 - (i + 0.5) / n_experts
        if abs(power) < 1e-9:
            drawn.append(float(low * (high / low) ** share))
        else:
            drawn.append(float(((high**power - low**power) * share + low**power) ** (1.0 / power)))
    scale = total / sum(drawn)
    counts = [min(n_tokens, round(x * scale)) for x in drawn]
    missing = round(total) - sum(counts)  # what rounding lost, or gave, is shared out from those with most on
    step = 1 if missing > 0 else -1
    i = 0
    while missing:
        if 0 <= counts[i % n_experts] + step <= n_tokens:
            counts[i % n_experts] += step
            missing -= step
        i += 1
    return sorted(counts, reverse=True)


def n_touched(n_tokens: int, n_taken: float, n_experts: int, skew: float = 0.0) -> float:
    """Experts that a step of ``n_tokens`` tokens needs, expected.

    Examples
    --------
    >>> round(n_touched(4, 2, 8), 2)  # 8 (1 - (1 - 2/8)^4)
    5.47
    """
    if not skew:
        return float(n_experts * (1.0 - (1.0 - n_taken / n_experts) ** n_tokens))
    return float(sum(1 for count in loads(n_tokens, n_taken, n_experts, skew) if count))


def rank_load(n_tokens: int, top_k: int, n_experts: int, n_ranks: int, skew: float) -> tuple[float, float]:
    """(choices of tokens, experts touched) on the rank with the most to do, of ``n_ranks`` that experts lie on.

    Experts are dealt out to ranks by their loads, so that the rank with most is the first.
    """
    if not skew:
        return n_tokens * top_k / n_ranks, n_touched(n_tokens, top_k, n_experts) / n_ranks
    own = loads(n_tokens, top_k, n_experts, skew)[::n_ranks]
    return float(sum(own)), float(sum(1 for count in own if count))


def even_load(n_tokens: int, top_k: int, n_experts: int, n_ranks: int) -> tuple[float, float]:
    """The same where tokens are dealt out in turn, as in tables called balanced: no expert twice before all are taken.

    Examples
    --------
    >>> even_load(4, 2, 8, 1), even_load(1, 2, 8, 8)
    ((8.0, 8.0), (1.0, 1.0))
    """
    n_choices = max(1.0, n_tokens * top_k / n_ranks)
    return n_choices, min(n_experts / n_ranks, float(ceil(n_choices)))
