"""The same conversations through every cache, on models with many, few and one KV head."""

from functools import cache

import numpy as np
import pytest

from sim.build import Builder
from sim.metrics import measure, summary
from sim.record import Result
from sim.run import run
from tests.sim.kv.composed import configured

CACHES = ("static", "dynamic", "predictive", "paged", "streaming", "compressed", "hierarchical")
KV_HEADS = {"llama-2-7b": (32, 32), "llama-3.1-8b": (32, 8), "falcon-7b": (71, 1)}  # multi-head, grouped, multi-query
N_SESSIONS = 40


@cache
def served(model: str, kind: str) -> Result:
    return run(configured("scenario=chatbot", f"cache={kind}", f"model={model}", scenario__n_sessions=N_SESSIONS))


def first_turns(result: Result) -> list[list[int]]:
    """(arrival, prompt, answer) of each conversation's first request, served or refused."""
    names = ("session_id", "arrival_ns", "prompt_tokens", "output_tokens")
    tables = [np.column_stack([table.column(name) for name in names]) for table in (result.requests, result.refused)]
    rows = sorted(np.concatenate(tables).tolist())
    return [row for row, before in zip(rows, [[-1], *rows], strict=False) if row[0] != before[0]]


@pytest.mark.parametrize("model", KV_HEADS)
@pytest.mark.parametrize("kind", CACHES)
def test_chatbot_runs_with_the_same_arrivals_whatever_the_cache(kind, model):
    result = served(model, kind)
    spec = Builder(result.config).model
    heads = spec.stack[0].attention
    assert (heads.n_heads, heads.n_kv_heads) == KV_HEADS[model]
    arrivals = first_turns(result)
    assert len(arrivals) == N_SESSIONS
    assert arrivals == first_turns(served(model, "paged"))
    assert arrivals == first_turns(served("llama-3.1-8b", "paged")), "nor the model"
    assert len(result.requests) > 0.8 * N_SESSIONS
    assert result.iterations.column("held_tokens").max() > 0


@pytest.mark.parametrize("model", KV_HEADS)
def test_what_sets_a_cache_apart_is_in_its_summary(model):
    ours = {}
    for kind in CACHES:
        result, slo = served(model, kind), Builder(served(model, kind).config)("slo")
        ours[kind] = summary(result, slo, measure(result, slo))["kvtwin"]
    counts = {kind: one["counts"] for kind, one in ours.items()}
    assert counts["streaming"]["attended_frac"] < 1.0
    assert 0.45 < counts["compressed"]["attended_frac"] < 0.6
    assert counts["dynamic"]["resizes"] > 0
    assert counts["predictive"]["prediction_error_frac"] > 0.0
    assert counts["hierarchical"]["hit_tokens_device"] > 0
    held = {kind: one["kv"]["held_frac"] for kind, one in ours.items()}
    assert held["static"] > held["dynamic"] > held["paged"] > held["compressed"] > 0.0
    waste = {kind: one["kv"]["waste_frac"] for kind, one in ours.items()}
    assert waste["paged"] < 0.1 < waste["dynamic"] < waste["static"]
