"""Greedy decoding with transformers, PEFT and bitsandbytes on the CPU, the peer of bench_serve.c: one request on the base, then 16 rows each with its own of 16
adapters (PEFT's adapter_names, its mixed batches).

    python bench/peer_decode.py bench-models/100m [NEW_TOKENS [PROMPT_TOKENS [THREADS]]]
"""
import json, sys, time

folder = sys.argv[1]
new = int(sys.argv[2]) if len(sys.argv) > 2 else 64
prompt = int(sys.argv[3]) if len(sys.argv) > 3 else 32
threads = int(sys.argv[4]) if len(sys.argv) > 4 else 2

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

torch.set_num_threads(threads)
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"}, torch_dtype=torch.bfloat16)
ids = torch.tensor([[(i * 7919 + 13) % 2000 for i in range(prompt)]])


def measure(what, model, rows, **extra):
    batch = ids.repeat(rows, 1)
    best = 1e9
    with torch.no_grad():
        for _ in range(2):
            begin = time.time()
            model.generate(input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=1, min_new_tokens=1, do_sample=False, pad_token_id=0, **extra)
            first = time.time() - begin
            begin = time.time()
            model.generate(input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, pad_token_id=0, **extra)
            best = min(best, time.time() - begin - first)
    print(json.dumps({"program": "transformers+peft+bitsandbytes", "what": what, "requests": rows, "new": new, "decode_tokens_per_s": round(rows * new / best, 1)}), flush=True)


model.eval()
measure("base alone", model, 1)
measure("base x 16", model, 16)
peft = PeftModel.from_pretrained(model, f"{folder}-adapters/a0", adapter_name="a0")
for i in range(1, 16):
    peft.load_adapter(f"{folder}-adapters/a{i}", adapter_name=f"a{i}")
peft.eval()
measure("16 adapters x 16", peft, 16, adapter_names=[f"a{i}" for i in range(16)])
