"""vLLM's side of `mixed_batch.py`, which starts it with an interpreter that has vLLM.

    PYTHON benchmarks/serving/vllm_side.py REQUESTS BASE [ADAPTER ...]

A line of standard input has prompts in token ids and how many tokens each gets; the answer has seconds.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from measure import Answer, serve_side


def make() -> Answer:
    """An engine with a slot for each adapter, and room for so many requests at once."""
    requests, base, *folders = sys.argv[1:]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    settings: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": int(requests)}
    if folders:
        ranks = [json.loads((Path(folder) / "adapter_config.json").read_text())["r"] for folder in folders]
        settings |= {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": max(ranks)}
    engine = LLM(model=base, **settings)
    adapters = [LoRARequest(f"adapter-{number}", number, folder) for number, folder in enumerate(folders, 1)]

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        prompts = [{"prompt_token_ids": ids} for ids in question["prompts"]]
        chosen = [adapters[index % len(adapters)] for index in range(len(prompts))] if adapters else None
        sampling = SamplingParams(temperature=0, max_tokens=question["tokens"], ignore_eos=True, detokenize=True)
        start = time.perf_counter()
        engine.generate(prompts, sampling, lora_request=chosen, use_tqdm=False)
        return {"seconds": time.perf_counter() - start}

    return answer


if __name__ == "__main__":
    serve_side(make)
