"""QLoRA as a user writes it with transformers, PEFT and bitsandbytes alone: the script that `one_run.py` compares with.

    python benchmarks/training/plain_script.py BASE BATCHES.json [--guide] [--threads N]

BATCHES.json is a list of steps, each a list of examples: {"input_ids": […], "labels": […]}. `--guide` prepares the
model as PEFT's guide to quantization does (`prepare_model_for_kbit_training`), which keeps what is not quantized in
fp32; without it, it stays in bfloat16, which is faster and takes less. Prints one JSON line.
"""

import argparse
import json
import resource
import time

BEGAN = time.time()


def main() -> None:
    options = parse()
    import torch

    torch.set_num_threads(options.threads)
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        get_linear_schedule_with_warmup,
        set_seed,
    )

    moments = {"began": BEGAN, "imports": time.time()}
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    with open(options.batches) as stream:
        steps = json.load(stream)
    moments["data"] = time.time()
    model = AutoModelForCausalLM.from_pretrained(
        options.base,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    moments["base"] = time.time()
    checkpointing = {"use_reentrant": False}
    if options.guide:
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=checkpointing)
    else:
        model.gradient_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    model.config.use_cache = False
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = bnb.optim.PagedAdamW32bit(weights, lr=2e-4)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.03 * len(steps)), len(steps))
    moments["adapter"] = time.time()

    model.train()
    losses, ends, processor = [], [], []
    for examples in steps:
        batch = tokenizer.pad({"input_ids": [each["input_ids"] for each in examples]}, return_tensors="pt")
        length = batch["input_ids"].shape[1]
        labels = [each["labels"] + [-100] * (length - len(each["labels"])) for each in examples]
        loss = model(**batch, labels=torch.tensor(labels)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        ends.append(time.time())
        processor.append(time.process_time())
    moments["step"] = ends[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"losses": losses, "ends": ends, "processor": processor, "peak": peak, "moments": moments}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder of a base model")
    parser.add_argument("batches", help="what to train on, step by step")
    parser.add_argument("--guide", action="store_true", help="prepare the model as PEFT's guide does")
    parser.add_argument("--threads", type=int, default=2, help="that torch computes with")
    return parser.parse_args()


if __name__ == "__main__":
    main()
