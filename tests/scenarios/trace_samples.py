"""A small valid file of each trace format, written out as its readers document it."""

import json

KCT = {
    "id": "t1", "dup_of": None, "bs": 64, "tool": 9, "sys": 9,
    "req": [
        [0.0, 200, 5, 1.0, 0.0, -1, 0, 3, 0], [9.5, 300, 6, 1.0, 2.0, 0, 3, 4, 0],
        [12.0, 150, 7, 1.0, None, 1, 1, 2, 1],
    ],
}  # fmt: skip

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
}  # fmt: skip
