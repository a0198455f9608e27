"""A small valid file of each trace format, written out as its readers document it."""

import json

KCT = {
    "id": "t1", "dup_of": None, "bs": 64, "tool": 9, "sys": 9,
    "req": [
        [0.0, 200, 5, 1.0, 0.0, -1, 0, 3, 0], [9.5, 300, 6, 1.0, 2.0, 0, 3, 4, 0],
        [12.0, 150, 7, 1.0, None, 1, 1, 2, 1],
    ],
}  # fmt: skip

AT_S = (0.5, 1.25, 3.0)  # of requests with 10, 20 and 30 tokens that get 1, 2 and 3
EPOCH_NS = 1_759_813_207_000_000_000


def otlp(at_s, prompt, output):
    """A span of vLLM's as OTLP writes it: 64-bit numbers are texts."""
    counts = {"gen_ai.usage.prompt_tokens": prompt, "gen_ai.usage.completion_tokens": output}
    return {
        "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": f"{output:016x}", "name": "llm_request",
        "startTimeUnixNano": str(EPOCH_NS + round(at_s * 1e9)), "endTimeUnixNano": str(EPOCH_NS + 9 * 10**9),
        "attributes": [
            {"key": "gen_ai.request.id", "value": {"stringValue": f"cmpl-{output}"}},
            {"key": "gen_ai.request.temperature", "value": {"doubleValue": 0.7}},
            *({"key": key, "value": {"intValue": str(n)}} for key, n in counts.items()),
        ],
    }  # fmt: skip


def aiperf(at_s, prompt, output):
    return {
        "metadata": {
            "session_num": output, "x_request_id": f"r{output}", "x_correlation_id": "ab"[output % 2], "turn_index": 0,
            "request_start_ns": EPOCH_NS + round(at_s * 1e9), "benchmark_phase": "profiling", "was_cancelled": False,
        },
        "metrics": {
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": output, "unit": "tokens"},
            "inter_chunk_latency": {"value": [4.9, 5.3], "unit": "ms"},
        },
        "error": None,
    }  # fmt: skip


def guidellm(at_s, prompt, output):
    return {
        "type_": "generative_request_stats", "request_id": f"r{output}", "output": "some text",
        "request_start_time": 1_759_813_207 + at_s, "prompt_tokens": prompt, "output_tokens": output,
    }  # fmt: skip


def inference_perf(at_s, prompt, output):
    return {
        "start_time": 9_000 + at_s, "end_time": 9_009, "request": "{}", "response": "...", "error": None,
        "info": {
            "request_metrics": {"text": {"input_tokens": prompt}},
            "response_metrics": {"output_tokens": output, "chunk_times": []}, "input_tokens": prompt,
        },
    }  # fmt: skip


LENGTHS = [(at, 10 * k, k) for k, at in enumerate(AT_S, 1)]
BY_END = [LENGTHS[i] for i in (2, 0, 1)]  # load generators note requests as they end

SAMPLES = {
    "csv": "arrival_s,prompt_tokens,output_tokens\n0.5,10,1\n1.25,20,2\n3,30,3\n",
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,10,1\n"
        "2023-11-16 18:17:04.7299600,20,2\n2023-11-16 18:17:06.4799600,30,3\n"
    ),
    "burstgpt": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n0.5,ChatGPT,10,1,11,Conversation log\n"
        "1.25,GPT-4,20,2,22,API log\n3,ChatGPT,30,3,33,Conversation log\n"
    ),
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,1\n1.25,20,2\n3.0,30,3\n",
    "apex": "StartTimeOffset_ns,ContextTokens,GeneratedTokens\n500000000,10,1\n1250000000,20,2\n3000000000,30,3\n",
    "lengths": "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n10,1,11,10\n20,2,22,10\n30,3,33,10\n",
    "llmservingsim_csv": "input_tokens,output_tokens,arrival_ns\n10,1,500000000\n20,2,1250000000\n30,3,3000000000\n",
    "llmservingsim": "".join(
        json.dumps({"input_toks": p, "output_toks": o, "arrival_time_ns": t}) + "\n"
        for p, o, t in ((10, 1, 500_000_000), (20, 2, 1_250_000_000), (30, 3, 3_000_000_000))
    ),
    "mooncake": "".join(
        json.dumps({"timestamp": t, "input_length": p, "output_length": o, "hash_ids": h}) + "\n"
        for t, p, o, h in ((500, 600, 1, [0, 1]), (1250, 1100, 2, [0, 2, 3]), (3000, 30, 3, [4]))
    ),
    "bailian": "".join(
        json.dumps(
            {
                "chat_id": c, "parent_chat_id": parent, "timestamp": t, "input_length": p, "output_length": o,
                "type": "text", "turn": turn, "hash_ids": h,
            }
        )
        + "\n"
        for c, parent, t, p, o, turn, h in (
            (7, -1, 0.5, 20, 1, 1, [0, 1]), (9, -1, 1.25, 16, 2, 1, [5]), (11, 7, 3.0, 40, 3, 2, [0, 1, 2]),
        )
    ),
    "vllm": json.dumps(
        {"date": "20260101", "input_lens": [10, 20, 30], "output_lens": [1, 2, 3], "ttfts": [0.1, 0.1, 0.1],
         "start_times": [100.5, 101.25, 103.0]}
    ),
    "claude_code": json.dumps(KCT) + "\n",
    "aiperf": "".join(json.dumps(aiperf(*row)) + "\n" for row in BY_END),
    "guidellm": json.dumps(
        {
            "metadata": {"version": 2},
            "benchmarks": [
                {
                    "type_": "generative_benchmark",
                    "requests": {
                        "successful": [guidellm(*row) for row in BY_END[:2]], "errored": [],
                        "incomplete": [guidellm(*BY_END[2])], "total": None,
                    },
                }
            ],
        },
        indent=4,
    ),
    "inference_perf": json.dumps([inference_perf(*row) for row in BY_END], indent=2),
    "otel": "".join(
        json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}) + "\n"
        for spans in ([otlp(*BY_END[0]), otlp(*BY_END[1])], [otlp(*BY_END[2])])
    ),
    "sharegpt": json.dumps(
        [
            {
                "id": f"c{k}",
                "conversations": [
                    {"from": "human", "value": "x" * 40 * k}, {"from": "gpt", "value": "y" * 4 * k},
                    {"from": "human", "value": "and then?"},
                ],
            }
            for k in (1, 2, 3)
        ]
    ),
    "prompts": "".join(json.dumps({"prompt": "x" * 40 * k, "output_tokens": k}) + "\n" for k in (1, 2, 3)),
}  # fmt: skip
