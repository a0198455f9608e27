"""The engine's answers equal plain recompute, whatever the cache."""

import json
import struct

import pytest
import torch

from calibration.engine import cpu_ops
from calibration.engine.decoder import Decoder, read_safetensors
from calibration.engine.memory import Extents, Hierarchical, Paged, Pruned, Ring, Sequence
from calibration.engine.serving import Engine, generate, pool_of, recompute, regenerate, window_mask
from kernels import reference
from kernels.decode_plan import plan_decode
from kernels.prefill_plan import plan_prefill
from sim.errors import ConfigError
from sim.kv.allocator import Buddy, FirstFit
from sim.kv.prediction import Predicted
from sim.kv.reservation import Growing, Maximum
from sim.kv.retention import Share, Window
from sim.request import Request
from sim.spec import Dense, Gqa, Layers, ModelSpec

CPU = torch.device("cpu")
SIZES = {"d_model": 64, "vocab": 300, "max_len": 256}
TINY = ModelSpec(name="tiny", stack=[Layers(2, Gqa(4, 2, 64), Dense(96))], **SIZES)
LEARNT = ModelSpec(
    name="learnt", stack=[Layers(2, Gqa(4, 4, 64), Dense(96, is_gated=False))], has_tied_embeddings=True,
    n_position_embeddings=256, **SIZES,
)  # fmt: skip
PROMPTS = [list(torch.randint(0, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist()) for n in (1, 17, 40)]


@pytest.fixture(scope="module")
def decoder():
    return Decoder(TINY, CPU)


def extents(decoder, allocator, reservation, n_slots=512):
    return Extents(pool_of(decoder, n_slots, extent_tokens=128), cpu_ops.kv_copy, allocator, reservation)


CACHES = {
    "paged": lambda d: Paged(pool_of(d, 512), cpu_ops.kv_copy),
    "blocks of one token": lambda d: Paged(pool_of(d, 512, 1), cpu_ops.kv_copy),
    "static": lambda d: extents(d, Buddy, Maximum(128)),
    "dynamic": lambda d: extents(d, FirstFit, Growing(initial=4, growth=1.5)),
    "predictive": lambda d: extents(d, FirstFit, Predicted(initial=8)),
    "hierarchical": lambda d: Hierarchical(pool_of(d, 160), cpu_ops.kv_copy, 32),
    "a wide ring": lambda d: Ring(pool_of(d, 2048), cpu_ops.kv_copy, Window(window=128, sinks=4), 64),
    "all of it compressed": lambda d: Pruned(
        pool_of(d, 512), cpu_ops.kv_copy, Share(keep_ratio=1.0), cpu_ops.key_norms
    ),
}


@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_that_keeps_all_answers_as_recompute_does(decoder, cache):
    wanted = [regenerate(decoder, prompt, 12) for prompt in PROMPTS]
    assert generate(decoder, CACHES[cache](decoder), PROMPTS, 12) == wanted


@pytest.mark.parametrize("chunk", [4, 7, 64])
def test_chunks_of_any_size_beside_those_that_decode_change_nothing(decoder, chunk):
    wanted = [regenerate(decoder, prompt, 8) for prompt in PROMPTS]
    for make in (CACHES["paged"], CACHES["dynamic"]):
        engine = Engine(decoder, make(decoder), chunk, 3)
        sequences = [Sequence(Request(i, 0, len(p), 8, 8), list(p)) for i, p in enumerate(PROMPTS)]
        for sequence in sequences:
            engine.submit(sequence)
        while not engine.is_idle:
            engine.step()
        assert [s.tokens[-8:] for s in sequences] == wanted


def test_learnt_positions_tied_embeddings_and_a_plain_mlp(decoder):
    plain = Decoder(LEARNT, CPU)
    wanted = [regenerate(plain, prompt, 6) for prompt in PROMPTS]
    assert generate(plain, Paged(pool_of(plain, 512), cpu_ops.kv_copy), PROMPTS, 6) == wanted
    assert wanted != [regenerate(decoder, prompt, 6) for prompt in PROMPTS]


def test_sixteen_at_once_of_all_lengths(decoder):
    prompts = [PROMPTS[2][: n + 1] for n in range(16)]
    wanted = [regenerate(decoder, prompt, 4) for prompt in prompts]
    assert generate(decoder, CACHES["paged"](decoder), prompts, 4) == wanted


def test_sinks_and_a_window_answer_as_a_masked_recompute(decoder):
    window, sinks = 10, 4
    tokens = list(PROMPTS[2])
    for _ in range(20):
        tokens.append(int(recompute(decoder, tokens, window_mask(len(tokens), window, sinks))[-1].argmax()))
    memory = Ring(pool_of(decoder, 512), cpu_ops.kv_copy, Window(window=window, sinks=sinks), 48)
    assert generate(decoder, memory, [PROMPTS[2]], 20) == [tokens[40:]]
    assert tokens[40:] != regenerate(decoder, PROMPTS[2], 20), "the window is felt"


def test_what_is_pruned_answers_as_a_recompute_that_masks_it(decoder, monkeypatch):
    """What each token saw is written down as the engine goes, and is all that the recompute lets it see."""
    prompt, n_out = PROMPTS[2], 14
    memory = Pruned(pool_of(decoder, 512), cpu_ops.kv_copy, Share(keep_ratio=0.5, every=4), cpu_ops.key_norms)
    engine = Engine(decoder, memory, 64, 4)
    sequence = Sequence(Request(0, 0, len(prompt), n_out, n_out), list(prompt))
    held, moves, logits = [], {}, []
    move, forward = memory._move, engine._forward

    def noted_move(from_slots, to_slots):
        index = {memory.slot(sequence, i): i for i in range(sequence.resident_tokens)}
        moves.update({index[there]: index[here] for here, there in zip(from_slots, to_slots, strict=True)})
        move(from_slots, to_slots)

    def noted_forward(chunks, decoding):
        logits.append(forward(chunks, decoding)[-1])
        return logits[-1][None]

    memory._move, engine._forward = noted_move, noted_forward
    engine.submit(sequence)
    n_all = len(prompt) + n_out
    is_seen = torch.tril(torch.ones(n_all, n_all, dtype=torch.bool))
    n_pruned = 0
    while not engine.is_idle:
        start = sequence.computed_tokens
        engine.step()
        held += range(start, sequence.computed_tokens)
        if start:
            is_seen[start] = False
            is_seen[start, held] = True
        n_pruned += sequence.resident_tokens < len(held)
        held = [held[moves.get(i, i)] for i in range(sequence.resident_tokens)]
        moves.clear()
    assert n_pruned >= 3
    wanted = recompute(decoder, sequence.tokens, is_seen)[len(prompt) - 1 : -1]
    torch.testing.assert_close(torch.stack(logits), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted[-1], recompute(decoder, sequence.tokens)[-2], atol=1e-3), "the mask is felt"


def test_prefixes_are_found_and_held_by_several(decoder):
    memory = CACHES["paged"](decoder)
    engine = Engine(decoder, memory, 64, 4)
    wanted = regenerate(decoder, PROMPTS[2], 5)
    for i in range(3):
        engine.submit(Sequence(Request(i, 0, 40, 5, 5), list(PROMPTS[2])))
        if i == 0:
            while not engine.is_idle:
                engine.step()
    sequences = list(engine.waiting)
    while not engine.is_idle:
        engine.step()
    assert [s.cached_tokens for s in sequences] == [32, 32]
    assert [s.tokens[-5:] for s in sequences] == [wanted, wanted]
    assert len(memory._free) == len(memory._blocks), "everything is given back"


@pytest.mark.parametrize("cache", ["paged", "dynamic", "hierarchical", "static"])
def test_who_gives_way_comes_back_and_answers_the_same(decoder, cache):
    make = {
        "paged": lambda: Paged(pool_of(decoder, 80), cpu_ops.kv_copy),
        "hierarchical": lambda: Hierarchical(pool_of(decoder, 80), cpu_ops.kv_copy, 8),
        "dynamic": lambda: extents(decoder, FirstFit, Growing(initial=4), 72),
        "static": lambda: extents(decoder, Buddy, Maximum(64), 128),
    }[cache]
    engine = Engine(decoder, make(), 16, 8)
    prompts = [PROMPTS[1], PROMPTS[2][:20], PROMPTS[2][5:30]]
    sequences = [Sequence(Request(i, 0, len(p), 16, 16), list(p)) for i, p in enumerate(prompts)]
    for sequence in sequences:
        engine.submit(sequence)
    for _ in range(500):
        if engine.is_idle:
            break
        engine.step()
    assert engine.is_idle
    assert [s.tokens[len(p) :] for s, p in zip(sequences, prompts, strict=True)] == [
        regenerate(decoder, p, 16) for p in prompts
    ]
    assert (engine.n_preempted > 0) == (cache != "static"), "what is reserved once never gives way"


def test_evicted_blocks_come_back_from_host_memory(decoder):
    memory = Hierarchical(pool_of(decoder, 80), cpu_ops.kv_copy, 16)
    engine = Engine(decoder, memory, 64, 1)
    first = Sequence(Request(0, 0, 40, 4, 4), list(PROMPTS[2]))
    others = [Sequence(Request(i, 0, 60, 4, 4), [(i * 7 + j) % 300 for j in range(60)]) for i in range(1, 4)]
    again = Sequence(Request(9, 0, 40, 4, 4), list(PROMPTS[2]))
    for sequence in (first, *others, again):
        engine.submit(sequence)
    while not engine.is_idle:
        engine.step()
    assert again.cached_tokens == 32
    assert memory.moved_bytes > 0
    assert again.tokens == first.tokens == [*PROMPTS[2], *regenerate(decoder, PROMPTS[2], 4)]


def test_growth_copies_what_was_written(decoder):
    memory = CACHES["dynamic"](decoder)
    generate(decoder, memory, PROMPTS, 12)
    assert memory.n_grown >= 3
    assert memory.copied_bytes > 0


@pytest.mark.parametrize("span", [{}, {"window": 9}, {"window": 9, "n_sinks": 3}])
@pytest.mark.parametrize("ring", [False, True])
def test_the_fast_operations_equal_the_reference(span, ring):
    if ring and not span:
        return
    torch.manual_seed(0)
    lens, news = [5, 33, 1, 20], [5, 3, 1, 7]
    ring_blocks = 5 if ring else None
    k, v = (torch.randn(60, 4, 2, 64) for _ in "kv")
    table = torch.randperm(60)[: 4 * 9].view(4, 9).int()
    heads = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "device": "cpu"}
    q = torch.randn(4, 4, 64)
    plan = plan_decode(lens, **heads, **span)
    torch.testing.assert_close(
        cpu_ops.decode_attention(q, k, v, table, plan, ring_blocks=ring_blocks),
        reference.decode_attention(q, k, v, table, plan, ring_blocks=ring_blocks).float(),
    )
    q = torch.randn(sum(news), 4, 64)
    plan = plan_prefill(news, lens, **heads, **span)
    torch.testing.assert_close(
        cpu_ops.prefill_attention(q, k, v, table, plan, ring_blocks=ring_blocks),
        reference.prefill_attention(q, k, v, table, plan, ring_blocks=ring_blocks).float(),
    )


def test_weights_of_a_folder_are_read(tmp_path, decoder):
    names = {
        "embedding": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head",
        **{f"{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(2) for ours, theirs in (
            ("norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm"),
            ("attention_out", "self_attn.o_proj"), ("mlp_out", "mlp.down_proj"),
        )},
    }  # fmt: skip
    tensors = {f"{theirs}.weight": decoder._weights[ours] for ours, theirs in names.items()}
    for i in range(2):
        q, k, v = decoder._weights[f"{i}.qkv"].split([256, 128, 128])
        gate, up = decoder._weights[f"{i}.mlp_in"].chunk(2)
        parts = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        parts |= {"mlp.gate_proj": gate, "mlp.up_proj": up}
        tensors |= {f"model.layers.{i}.{name}.weight": x for name, x in parts.items()}
    header, content = {}, b""
    for name, x in tensors.items():
        raw = x.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    again = Decoder(TINY, CPU, seed=5, folder=tmp_path)
    assert regenerate(again, PROMPTS[1], 5) == regenerate(decoder, PROMPTS[1], 5)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="no whole safetensors file"):
        read_safetensors(path)
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        Decoder(TINY, CPU, folder=tmp_path / "nowhere")


def test_what_cannot_be_served_is_refused(decoder):
    engine = Engine(decoder, Paged(pool_of(decoder, 32), cpu_ops.kv_copy), 64, 4)
    with pytest.raises(ConfigError, match="2 to 256 tokens together, got 301"):
        engine.submit(Sequence(Request(0, 0, 1, 300, 300), [1]))
    engine.submit(Sequence(Request(0, 0, 40, 4, 4), list(PROMPTS[2])))
    with pytest.raises(ConfigError, match="exceed the KV memory"):
        engine.step()
    with pytest.raises(ConfigError, match="max_num_batched_tokens must be >="):
        Engine(decoder, engine.memory, 2, 4)


def test_layers_that_differ_are_refused():
    mixed = ModelSpec(
        name="mixed", stack=[Layers(1, Gqa(4, 2, 64), Dense(96)), Layers(1, Gqa(4, 2, 64, 16), Dense(96))], **SIZES
    )
    with pytest.raises(ConfigError, match="layers all alike"):
        Decoder(mixed, CPU)


def test_a_models_own_window_masks_what_a_paged_cache_keeps(decoder):
    narrow = Decoder(ModelSpec(name="narrow", stack=[Layers(2, Gqa(4, 2, 64, 10), Dense(96))], **SIZES), CPU)
    memory = Paged(pool_of(narrow, 512), cpu_ops.kv_copy)
    memory.window = narrow.model.window
    tokens = list(PROMPTS[2])
    for _ in range(6):
        tokens.append(int(recompute(narrow, tokens, window_mask(len(tokens), 10, 0))[-1].argmax()))
    assert generate(narrow, memory, [PROMPTS[2]], 6) == [tokens[40:]]
