"""How a description of traffic is shown: tables on the terminal, and one page with charts."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.describe import Description, Look, nearest
from scenarios.distributions import Floats, Ints
from scenarios.statistics import Spread
from scenarios.traces.servegen import Clients
from sim.report.figure import Figure, curve, line, numbers, time_axis
from sim.report.html import Page, Section, Table, Tile, render
from sim.report.words import percent
from sim.units import NS_PER_S

if TYPE_CHECKING:
    from rich.table import Table as RichTable

HEADINGS = ("", "n", "mean", "p10", "p50", "p90", "p99", "max")
N_BINS = 200
SHOWN_FITS = 3


def short(value: float | None) -> str:
    """A number in four significant digits, thousands separated; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def spreads(description: Description) -> list[tuple[str, ...]]:
    """Rows of the table of quantities."""
    reuse = description.reuse
    named: list[tuple[str, Spread | None]] = [
        ("prompt [tokens]", description.prompt),
        ("output [tokens]", description.output),
        ("think time [s]", description.think_s),
        ("gap to the parent [s]", reuse.parent_gap_s if reuse else None),
        ("depth below the root", reuse.depth if reuse else None),
        ("new tokens after the parent", reuse.new_tokens if reuse else None),
    ]
    return [(name, *(short(v) for v in (s.n, s.mean, s.p10, s.p50, s.p90, s.p99, s.most))) for name, s in named if s]


def facts(description: Description) -> Iterator[tuple[str, str]]:
    """The single numbers, in words."""
    d = description
    yield "requests", f"{d.n_requests:,}" + (f" in {d.n_sessions:,} sessions" if d.n_sessions else "")
    if d.n_empty:
        yield "without prompt or output", f"{d.n_empty:,} (scenario.skip_empty=true leaves them out)"
    yield "tokens", f"{d.total_prompt_tokens:,} of prompts, {d.total_output_tokens:,} of outputs"
    if d.pearson is not None:
        yield "prompt and output lengths", f"Pearson {d.pearson:.3f}, Spearman {short(d.spearman)}"
    if a := d.arrivals:
        bucket = f", in {a.n_instants:,} buckets of {short(a.bucket_s)} s" if a.bucket_s else ""
        yield "arrivals", f"{short(a.rate_per_s)} per second for {a.span_s:,.0f} s{bucket}"
        if not a.bucket_s:
            yield "gaps", f"coefficient of variation {short(a.gap_cv)} (Poisson: 1)"
        said = ", ".join(f"{short(value)} at {window:g} s" for window, value in a.dispersion.items())
        yield "index of dispersion", f"{said} (Poisson: 1)"
        yield "busiest minute", f"{short(a.peak_over_mean)} times the mean"
    if r := d.reuse:
        yield (
            "prefix reuse",
            f"{percent(r.ceiling_frac)} of prompt tokens seen before: the most that a prefix cache can save",
        )
        yield (
            "pieces of text",
            f"{r.n_pieces:,}; {r.n_unique_pieces:,} different ones, of which {percent(r.once_frac)} used once",
        )
        if r.common_tokens:
            yield "common to all", f"the first {r.common_tokens:,} tokens"
        yield "requests with a parent", f"{percent(r.child_frac)}; {percent(r.single_frac)} of the others have no child"
    if load := d.load:
        offered = (
            f"{short(load.prompt_tokens_per_s)} prompt and {short(load.output_tokens_per_s)} output tokens per second"
        )
        yield "offered load", f"{offered}, {short(load.new_prompt_tokens_per_s)} prompt tokens new"
        if load.capacity_tokens_per_s is not None and load.least_utilization_frac is not None:
            used = f"at least {percent(load.least_utilization_frac)} of {short(load.capacity_tokens_per_s)} tokens/s"
            yield "of the hardware", f"{used}, its peak arithmetic without attention"


def fit_rows(description: Description) -> list[tuple[str, str, str, str]]:
    """The nearest published fits of each quantity."""
    return [
        (quantity, fit.name, f"{fit.ks:.3f}", f"{fit.published_ks:.3f}")
        for quantity, found in description.fits.items()
        for fit in found[:SHOWN_FITS]
    ]


FIT_HEADINGS = ("quantity", "published fit", "KS distance", "of its own data")


def tables(description: Description) -> list["RichTable"]:
    """What the terminal shows."""
    said = _rich(("", ""), list(facts(description)), is_numeric=False)
    return [said, _rich(HEADINGS, spreads(description)), _rich(FIT_HEADINGS, fit_rows(description), is_numeric=False)]


def client_table(categories: Sequence[Clients]) -> "RichTable":
    """Clients by category: how many, how much they send, how unevenly."""
    rows = []
    for group in categories:
        known = group.gap_cv[~np.isnan(group.gap_cv)]
        p50, p90 = np.percentile(known, [50, 90])
        rate = float(group.rate_per_s.sum())
        rows.append((group.category, str(len(group.gap_cv)), short(rate), short(p50), short(p90)))
    rows.append(("all", str(sum(len(group.gap_cv) for group in categories)), "", "", ""))
    return _rich(("category", "clients", "requests/s", "CV of gaps, p50", "p90"), rows)


def _rich(headings: Sequence[str], rows: Sequence[Sequence[str]], is_numeric: bool = True) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headings))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if is_numeric and i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def in_words(description: Description) -> str:
    """The traffic in a sentence or two."""
    d = description
    said = f"{d.n_requests:,} requests" + (f" in {d.n_sessions:,} sessions" if d.n_sessions else "")
    if d.arrivals:
        said += f", {short(d.arrivals.rate_per_s)} a second for {d.arrivals.span_s:,.0f} s"
    said += f"; half of the prompts are longer than {short(d.prompt.p50)} tokens and half of the answers than "
    said += f"{short(d.output.p50)}."
    if d.reuse:
        said += f" A prefix cache can save {percent(d.reuse.ceiling_frac)} of the prompt tokens at most."
    return said


def page(description: Description, look: Look) -> str:
    """The page as HTML text."""
    d = description
    tiles = [Tile("Requests", f"{d.n_requests:,}")]
    if d.arrivals:
        tiles.append(Tile("Arrivals", short(d.arrivals.rate_per_s), "req/s", f"for {d.arrivals.span_s:,.0f} s"))
    tiles.append(Tile("Prompt, median", short(d.prompt.p50), "tokens", f"p99 {short(d.prompt.p99)}"))
    tiles.append(Tile("Output, median", short(d.output.p50), "tokens", f"p99 {short(d.output.p99)}"))
    if d.reuse:
        tiles.append(Tile("Prefix reuse, at most", f"{100 * d.reuse.ceiling_frac:.1f}", "%", "of prompt tokens"))
    charts = [
        _lengths(d, "prompt", look.prompt_tokens, "--blue"),
        _lengths(d, "output", look.output_tokens, "--green"),
    ]
    time = [] if d.arrivals is None else [_over_time(look), _gaps(d, look)]
    shown = Page(
        title="kvtwin: traffic",
        heading="Traffic",
        lead="What arrives, before any of it is simulated.",
        verdict=[in_words(d)],
        tiles=tiles,
        sections=[
            Section("numbers", "In numbers", tables=[
                Table(list(facts(d)), style="facts"),
                Table(spreads(d), HEADINGS, style="wide"),
                Table(fit_rows(d), FIT_HEADINGS, "Distance to published fits"),
            ]),
            Section("lengths", "Lengths", "How long prompts and outputs are.", charts),
            Section("time", "Over time", "When requests arrive.", [figure for figure in time if figure is not None]),
        ],
        footer="Made by kvtwin from the traffic alone.",
    )  # fmt: skip
    return render(shown)


def _lengths(description: Description, quantity: str, values: Ints, colour: str) -> Figure:
    words = {"prompt": "Prompts", "output": "Outputs"}[quantity]
    traces, caption = _against_fit(description, quantity, values.astype(np.float64), colour)
    layout = {"xaxis": {"type": "log", "title": {"text": "tokens"}}, "yaxis": {"range": [0, 1]}}
    return Figure(quantity, f"Length of {words.lower()}", caption, traces, layout, is_wide=False)


def _against_fit(description: Description, quantity: str, values: Floats, colour: str) -> tuple[list[Any], str]:
    """Distribution functions of samples and of the published fit nearest to them."""
    x, y = curve(values)
    traces = [line(numbers(x), numbers(y), "this traffic", colour)]
    found = nearest(description, quantity)
    if found is None:
        return traces, "Share of requests at or below a value."
    name, distribution = found
    traces.append(line(numbers(x), numbers(distribution.cdf(x)), name, "--grey", line={"width": 1.5, "dash": "dot"}))
    ks = description.fits[quantity][0].ks
    return (
        traces,
        f"Share of requests at or below a value. Nearest published fit: {name}, at a distance of {ks:.3f}.",
    )


def _over_time(look: Look) -> Figure:
    at_s = (look.arrival_ns - look.arrival_ns[0]) / NS_PER_S
    width_s = max(float(at_s[-1]) / N_BINS, 1e-9)
    n_bins = min(N_BINS, int(at_s[-1] // width_s) + 1)
    per_bin = np.bincount((at_s // width_s).astype(np.int64), minlength=n_bins)[:n_bins]
    unit, unit_s = time_axis(float(at_s[-1]))
    x = (np.arange(len(per_bin)) + 0.5) * width_s / unit_s
    traces = [line(numbers(x), numbers(per_bin / width_s), "requests per second", "--blue", line={"shape": "hvh"})]
    caption = f"Requests per second, in windows of {short(width_s)} s."
    layout = {"xaxis": {"title": {"text": unit}}, "yaxis": {"rangemode": "tozero"}}
    return Figure("arrivals", "Arrivals", caption, traces, layout)


def _gaps(description: Description, look: Look) -> Figure | None:
    gaps_s = np.diff(look.arrival_ns) / NS_PER_S
    if not (gaps_s > 0).any():
        return None
    traces, caption = _against_fit(description, "gap", gaps_s[gaps_s > 0], "--purple")
    layout = {"xaxis": {"type": "log", "title": {"text": "s"}}, "yaxis": {"range": [0, 1]}}
    return Figure("gaps", "Gaps between arrivals", caption, traces, layout)
