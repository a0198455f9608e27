"""The page of ``step=report``: how far the served times of a profile are off, and what they rest on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from calibration.proof import Proof
from calibration.score import score
from sim.profile import KernelProfile
from sim.report.figure import Figure, Json, numbers
from sim.report.html import Page, Section, Table, render
from sim.report.overlay import COLOURS
from sim.report.words import count, percent, signed

MOST_POINTS = 2_000  # of an operation drawn: enough to see its shape, little enough to open at once
DRAWN = {"in the fit": ("--grey", False), "held out": ("--orange", True)}
GOOD_FRAC = 0.05  # mean error of the worst operation up to which a profile is called good


def page(profile: KernelProfile, proofs: Sequence[Proof]) -> str:
    """The page as HTML text, plotly.js inside."""
    scored = {proof.name: proof.held_out for proof in proofs}
    known = {name: found["mape"] for name, found in scored.items() if found["mape"] is not None}
    charts = [residuals(proof, f"residuals-{i}") for i, proof in enumerate(proofs)]
    roofs = [roofline(proofs)] if any(proof.flops is not None for proof in proofs) else []
    return render(
        Page(
            title=f"kvtwin: calibration of {profile.device}",
            heading=f"Calibration of {profile.device}",
            lead=f"From {profile.source}. A time is the {profile.convention}.",
            verdict=[verdict(known)],
            mood="" if not known else "good" if max(known.values()) <= GOOD_FRAC else "fair",
            sections=[
                Section(
                    "errors",
                    "Errors of the served times",
                    "Held-out rows were chosen before the fit. MAPE is the mean of their absolute errors, and nine of "
                    "ten are within p90.",
                    tables=[error_table(profile, proofs), *comparison_tables(profile)],
                ),
                Section(
                    "residuals",
                    "Row by row",
                    "How far the served time is off, over the measured one. A trend is an error of the formula; "
                    "scatter around zero is the measurements' own.",
                    charts,
                ),
                *([Section("roofline", "What the device reaches", "", roofs)] if roofs else []),
                Section("provenance", "Provenance", tables=[provenance_table(profile)]),
            ],
            footer="Made by kvtwin from measured kernel times; the times drawn are those that a simulation is served.",
        )
    )


def verdict(mape: dict[str, float]) -> str:
    """How far off the operations are, the best and the worst, in words."""
    if not mape:
        return "No row was held out: nothing is known of the errors."
    best, worst = min(mape, key=mape.__getitem__), max(mape, key=mape.__getitem__)
    if best == worst:
        return f"Times never seen of {worst} are {percent(mape[worst])} off on average."
    return (
        f"Times never seen are {percent(mape[best])} ({best}) to {percent(mape[worst])} ({worst}) off on average, over "
        f"{len(mape)} operations."
    )


def error_table(profile: KernelProfile, proofs: Sequence[Proof]) -> Table:
    """Errors per operation on rows held out and rows trained on, and the floor that repeats put under them."""
    rows = []
    for proof in proofs:
        held = proof.held_out
        seen = score(proof.predicted_s[~proof.is_held_out], proof.measured_s[~proof.is_held_out])
        form = profile.operations.get(proof.name, {})
        floor = form.get("error", {}).get("repeat_floor") or form.get("error", {}).get(
            "neighbouring_token_counts_differ_by"
        )
        rows.append(
            (
                proof.name.replace("_", " "),
                count(held["n"]),
                percent(held["mape"]),
                percent(held["p90"]),
                signed(held["bias"]),
                count(seen["n"]),
                percent(seen["mape"]),
                percent(floor),
            )
        )
    head = ("operation", "held-out rows", "MAPE", "p90", "bias", "rows in the fit", "their MAPE", "repeats differ by")
    return Table(rows, head, style="wide")


def comparison_tables(profile: KernelProfile) -> list[Table]:
    """What other forms reach on the same held-out rows, where any was tried."""
    rows = []
    for name, form in profile.operations.items():
        if compared := form["error"].get("compared"):
            best = ", ".join(f"{kind.replace('_', ' ')} {percent(found['mape'])}" for kind, found in compared.items())
            rows.append((name.replace("_", " "), percent(form["error"]["held_out"]["mape"]), best))
    headings = ("operation", "served", "other forms")
    return [Table(rows, headings, "Beside other forms, on the same held-out rows", "facts")] if rows else []


def provenance_table(profile: KernelProfile) -> Table:
    """Where the measurements come from."""
    rows: list[tuple[str, str]] = [("SHA-256 of the profile", profile.sha256)]
    for key, value in profile.provenance.items():
        words = "; ".join(str(x) for x in value) if isinstance(value, list) else str(value)
        rows.append((key.replace("_", " "), words))
    return Table(rows, style="facts")


def drawn_points(proof: Proof) -> Any:
    """Indices of the points drawn: all, or evenly spread ones."""
    n = len(proof.measured_s)
    return np.arange(n) if n <= MOST_POINTS else np.linspace(0, n - 1, MOST_POINTS).astype(int)


def residuals(proof: Proof, key: str) -> Figure:
    """Relative error over measured time, of the rows in the fit and of those held out."""
    at = drawn_points(proof)
    error = 100.0 * (proof.predicted_s / proof.measured_s - 1.0)
    traces: list[Json] = []
    for label, (colour, is_held_out) in DRAWN.items():
        rows = at[proof.is_held_out[at] == is_held_out]
        traces.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "x": numbers(1e6 * proof.measured_s[rows]),
                "y": numbers(error[rows]),
                "name": label,
                "marker": {"size": 4, "color": colour},
                "hovertemplate": "%{x:.4g} us: %{y:+.1f} %",
            }
        )
    held = proof.held_out
    known = error[proof.is_held_out]
    quantiles = np.percentile(known, (5, 50, 95)) if len(known) else np.full(3, np.nan)
    return Figure(
        key,
        proof.name.replace("_", " "),
        f"{len(at):,} of {len(proof.measured_s):,} rows.",
        traces,
        {
            "xaxis": {"type": "log", "title": {"text": "measured [us]"}},
            "yaxis": {"ticksuffix": " %", "zeroline": True},
            "hovermode": "closest",
        },
        ("held out", "rows", "5 % of errors below", "median", "95 % below"),
        [("error", count(held["n"]), *(signed(None if np.isnan(q) else float(q) / 100.0) for q in quantiles))],
        height_px=260,
        is_wide=False,
    )


def roofline(proofs: Sequence[Proof]) -> Figure:
    """Arithmetic reached over arithmetic intensity, of every operation that has both."""
    traces: list[Json] = []
    rows = []
    for i, proof in enumerate(one for one in proofs if one.flops is not None and one.n_bytes is not None):
        if proof.flops is None or proof.n_bytes is None:
            continue
        at = drawn_points(proof)
        reached = proof.flops / proof.measured_s / 1e12
        traces.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "x": numbers(proof.flops[at] / proof.n_bytes[at]),
                "y": numbers(reached[at]),
                "marker": {"size": 4, "color": COLOURS[i % len(COLOURS)]},
                "name": proof.name.replace("_", " "),
                "hovertemplate": "%{x:.4g} FLOP/B: %{y:.4g} TFLOP/s",
            }
        )
        rows.append((proof.name.replace("_", " "), f"{reached.max():,.4g}", f"{np.median(reached):,.4g}"))
    return Figure(
        "roofline",
        "Roofline",
        "All measured points: memory bounds the left, arithmetic the right.",
        traces,
        {
            "xaxis": {"type": "log", "title": {"text": "FLOP per byte"}},
            "yaxis": {"type": "log", "title": {"text": "TFLOP/s reached"}},
            "hovermode": "closest",
        },
        ("operation", "TFLOP/s at most", "median"),
        rows,
        height_px=460,
    )
