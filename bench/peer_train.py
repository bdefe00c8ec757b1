"""The same QLoRA step as bench_train.c with PEFT and bitsandbytes on the CPU: NF4 double-quantised base, r 16 on all linear layers, bf16 compute,
gradient checkpointing, AdamW, one row of TOKENS tokens.

    python bench/peer_train.py bench-models/100m [TOKENS [STEPS [THREADS]]]
"""
import json, resource, statistics, sys, time

folder = sys.argv[1]
tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 512
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 6
threads = int(sys.argv[4]) if len(sys.argv) > 4 else 2

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

torch.set_num_threads(threads)
torch.manual_seed(1)
begin = time.time()
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"}, torch_dtype=torch.bfloat16)
model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"))
model.config.use_cache = False
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)
vocab = model.config.vocab_size
ids = torch.tensor([[(i * 7919 + 13) % vocab for i in range(tokens)]])
opened = time.time() - begin
seconds = []
for _ in range(steps):
    begin = time.time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.time() - begin)
median = statistics.median(seconds[1:])
print(json.dumps({"program": "peft+bitsandbytes", "threads": threads, "tokens": tokens, "open_s": round(opened, 2), "step_s": round(median, 3),
                  "tokens_per_s": round(tokens / median, 1), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "loss": round(loss.item(), 4)}))
