"""What sampling takes after lm_head: how often it goes over all logits, which are as many as the vocabulary has words.

Counted in vLLM v1's sampler (v1/sample/sampler.py, v1/sample/ops/topk_topp_sampler.py, its PyTorch path), in passes
over the fp32 logits, each a read or a write of four bytes a logit:

* greedy: to fp32 (2 bytes read, 4 written: 1.5), argmax (1).
* random: to fp32, divided by the temperature (2), softmax (2), exponential noise (1), divided by it (3), argmax (1).
* top_p: as random, and before it a sort with 64-bit indices (four rounds of eight bits, keys and indices read and
  written: 24; indices made: 2), softmax (2), cumulated (2), compared and filled (3.5), scattered back (4).

Beside measurements: LLMServingSim's kernel times of the greedy sampler in vLLM 0.19 rise from 128 to 256 sequences as
2.3 passes (RTX PRO 6000, 128,256 logits), 2.6 (151,936 logits) and 2.9 (RTX 4090) at the share of the bandwidth that
element-wise kernels reach; fewer logits lie in the L2 cache there, and take less. Nobody's times of the other two were
at hand.
"""

from typing import NamedTuple


class Sampler(NamedTuple):
    """Kernels of one way of sampling, and how often they read or write all logits."""

    n_kernels: int
    n_passes: float


SAMPLERS = {"greedy": Sampler(2, 2.5), "random": Sampler(6, 10.5), "top_p": Sampler(14, 48.0)}
