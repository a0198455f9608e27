"""The report's page: tables first, which stand by themselves, then figures. One file, no network."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from calibration.proof import Proof
from calibration.score import score
from sim.profile import KernelProfile

MOST_POINTS = 2_000  # of an operation drawn: enough to see its shape, little enough to open at once
COLOURS = {"training": "#7a8794", "held out": "#c2410c"}

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; background: #fff; color: #111; border-radius: 8px; padding: .5rem; }
.wide { overflow-x: auto; }
"""


def page(profile: KernelProfile, proofs: Sequence[Proof]) -> str:
    """The page as HTML text, plotly.js inside."""
    import plotly.io as pio
    from plotly.offline import get_plotlyjs

    figures = [fitted_against_measured(proofs), residuals(proofs)]
    if any(proof.flops is not None for proof in proofs):
        figures.append(roofline(proofs))
    config = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
    drawn = "".join(
        f"<figure>{pio.to_html(figure, include_plotlyjs=False, full_html=False, config=config)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for figure, caption in figures
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Calibration of {escape(profile.device)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>"
        f"<h1>Calibration of {escape(profile.device)}</h1>"
        f"<p>From {escape(profile.source)}. A time is the {escape(profile.convention)}.</p>"
        f"{error_table(profile, proofs)}{comparison_table(profile)}{provenance_table(profile)}{drawn}"
        "</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """An HTML table of text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><caption>{escape(caption)}</caption><tr>{top}</tr>{body}</table></div>'


def percent(fraction: float | None) -> str:
    """A fraction for reading; a dash where there is none."""
    return "–" if fraction is None else f"{fraction:.1%}"


def error_table(profile: KernelProfile, proofs: Sequence[Proof]) -> str:
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
                proof.name,
                f"{held['n']:,}",
                percent(held["mape"]),
                percent(held["p90"]),
                percent(held["bias"]),
                f"{seen['n']:,}",
                percent(seen["mape"]),
                percent(floor),
            )
        )
    head = ("operation", "held-out rows", "MAPE", "p90", "bias", "rows in the fit", "their MAPE", "repeats differ by")
    return table(head, rows, "Errors of the served times. Held-out rows were chosen before the fit.")


def comparison_table(profile: KernelProfile) -> str:
    """What other forms reach on the same held-out rows."""
    rows = []
    for name, form in profile.operations.items():
        if compared := form["error"].get("compared"):
            best = ", ".join(f"{kind.replace('_', ' ')} {percent(found['mape'])}" for kind, found in compared.items())
            rows.append((name, percent(form["error"]["held_out"]["mape"]), best))
    return table(("operation", "served", "other forms"), rows, "Held-out MAPE beside that of other forms.")


def provenance_table(profile: KernelProfile) -> str:
    """Where the measurements come from."""
    rows: list[tuple[str, str]] = [("sha256 of the profile", profile.sha256)]
    for key, value in profile.provenance.items():
        rows.append((key, "; ".join(str(x) for x in value) if isinstance(value, list) else str(value)))
    return table(("", ""), rows, "Provenance")


def drawn_points(proof: Proof) -> Any:
    """Indices of the points drawn: all, or evenly spread ones."""
    n = len(proof.measured_s)
    return np.arange(n) if n <= MOST_POINTS else np.linspace(0, n - 1, MOST_POINTS).astype(int)


def facets(proofs: Sequence[Proof]) -> tuple[Any, list[tuple[int, int]]]:
    """A figure with one panel per operation, and where each panel is."""
    from plotly.subplots import make_subplots

    n_columns = min(3, len(proofs))
    n_rows = -(-len(proofs) // n_columns)
    figure = make_subplots(rows=n_rows, cols=n_columns, subplot_titles=[proof.name for proof in proofs])
    figure.update_layout(height=320 * n_rows + 80, template="plotly_white", margin={"t": 60})
    return figure, [(i // n_columns + 1, i % n_columns + 1) for i in range(len(proofs))]


def fitted_against_measured(proofs: Sequence[Proof]) -> tuple[Any, str]:
    """Predicted over measured time, logarithmic."""
    figure, places = facets(proofs)
    for proof, (row, col) in zip(proofs, places, strict=True):
        drawn = drawn_points(proof)
        for label, colour in COLOURS.items():
            at = drawn[proof.is_held_out[drawn] == (label == "held out")]
            scatter(figure, proof.measured_s[at] * 1e6, proof.predicted_s[at] * 1e6, label, colour, row, col)
    figure.update_xaxes(type="log", title="measured [us]")
    figure.update_yaxes(type="log", title="served [us]")
    return figure, "Served against measured time, training rows grey, held-out rows orange."


def residuals(proofs: Sequence[Proof]) -> tuple[Any, str]:
    """Relative error over measured time."""
    figure, places = facets(proofs)
    for proof, (row, col) in zip(proofs, places, strict=True):
        drawn = drawn_points(proof)
        error = 100.0 * (proof.predicted_s / proof.measured_s - 1.0)
        for label, colour in COLOURS.items():
            at = drawn[proof.is_held_out[drawn] == (label == "held out")]
            scatter(figure, proof.measured_s[at] * 1e6, error[at], label, colour, row, col)
    figure.update_xaxes(type="log", title="measured [us]")
    figure.update_yaxes(title="error [%]")
    return figure, "Residuals: how far the served time is off, in percent of the measured one."


def roofline(proofs: Sequence[Proof]) -> tuple[Any, str]:
    """Arithmetic reached over arithmetic intensity, of every operation that has both."""
    import plotly.graph_objects as go

    figure = go.Figure(layout={"template": "plotly_white", "height": 560})
    for proof in proofs:
        if proof.flops is None or proof.n_bytes is None:
            continue
        at = drawn_points(proof)
        figure.add_trace(
            go.Scattergl(
                x=np.round(proof.flops[at] / proof.n_bytes[at], 3),
                y=np.round(proof.flops[at] / proof.measured_s[at] / 1e12, 4),
                mode="markers",
                marker={"size": 4},
                name=proof.name,
            )
        )
    figure.update_xaxes(type="log", title="FLOP per byte")
    figure.update_yaxes(type="log", title="TFLOP/s reached")
    return figure, "Roofline of all measured points: memory bounds the left, arithmetic the right."


def scatter(figure: Any, x: Any, y: Any, label: str, colour: str, row: int, col: int) -> None:
    """Points of one panel."""
    import plotly.graph_objects as go

    figure.add_trace(
        go.Scattergl(
            x=np.round(x, 3),
            y=np.round(y, 3),
            mode="markers",
            marker={"size": 4, "color": colour},
            name=label,
            legendgroup=label,
            showlegend=row == col == 1,
        ),
        row=row,
        col=col,
    )
