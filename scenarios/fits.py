"""Distributions fitted to published traces (maximum likelihood), with their distances to the data they came from."""

from typing import NamedTuple

from scenarios.distributions import Distribution, Gamma, LogNormalMixture, Weibull


class Fit(NamedTuple):
    """A published fit."""

    name: str
    quantity: str  # prompt, output: [tokens]; gap: between arrivals [s]
    distribution: Distribution
    ks: float  # distance to the trace that it was fitted to


FITS = (
    Fit(
        "Azure 2023 conversation",
        "prompt",
        LogNormalMixture([0.6328, 0.2911, 0.0761], [6.2727, 6.9773, 8.3153], [1.0037, 0.0580, 0.0300]),
        0.115,
    ),
    Fit(
        "Azure 2023 conversation",
        "output",
        LogNormalMixture([0.2956, 0.4252, 0.2792], [4.7291, 4.5723, 6.0060], [1.0098, 0.3568, 0.0487]),
        0.029,
    ),
    Fit("Azure 2023 conversation", "gap", Gamma(0.871, 0.2076), 0.017),
    Fit("Azure 2023 code", "prompt", Gamma(0.9302, 2201.43), 0.035),
    Fit(  # published as .029, at lengths that occur; none is shorter than 6 tokens, where 3.4 % of the fit are
        "Azure 2023 code",
        "output",
        LogNormalMixture([0.6587, 0.3413], [2.3651, 3.6047], [0.3829, 0.8990]),
        0.034,
    ),
    Fit(
        "Mooncake conversation",
        "prompt",
        LogNormalMixture([0.0983, 0.1051, 0.7966], [6.8128, 7.2125, 9.1752], [0.0300, 0.2286, 0.9180]),
        0.032,
    ),
    Fit(
        "Mooncake conversation", "output", LogNormalMixture([0.3384, 0.6616], [4.0237, 6.0079], [1.6167, 0.3457]), 0.020
    ),
    Fit(
        "ShareGPT 8k",
        "prompt",
        LogNormalMixture([0.2022, 0.5363, 0.2615], [4.3371, 7.3027, 8.4635], [1.2213, 0.7162, 0.2968]),
        0.017,
    ),
    Fit("ShareGPT 8k", "output", Weibull(1.5563, 483.18), 0.049),
    Fit("arXiv summaries", "output", LogNormalMixture([0.8715, 0.1285], [5.0551, 6.0789], [0.5096, 1.5008]), 0.014),
    Fit(
        "BWB translation",
        "prompt",
        LogNormalMixture([0.0660, 0.8336, 0.1004], [6.4369, 6.9233, 7.3532], [0.8094, 0.1641, 0.0849]),
        0.018,
    ),
    Fit(
        "BWB translation",
        "output",
        LogNormalMixture([0.0737, 0.8384, 0.0879], [6.7251, 7.3598, 7.7573], [0.7954, 0.1499, 0.0607]),
        0.033,
    ),
    Fit(
        "Claude Code",
        "prompt",
        LogNormalMixture([0.6647, 0.2761, 0.0592], [11.2462, 11.6888, 12.7839], [0.6408, 0.1729, 0.3475]),
        0.019,
    ),
    Fit("Claude Code", "output", LogNormalMixture([0.4916, 0.5084], [5.0847, 6.0336], [0.4063, 0.9863]), 0.020),
)
