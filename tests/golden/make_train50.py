"""Fifty optimiser steps of QLoRA with PEFT over bitsandbytes' Linear4bit modules, in fp32 on the CPU.

Run:  python tests/golden/make_train50.py        (after make_models.py; needs transformers, peft, bitsandbytes, accelerate)
Writes adapters/train50_init/ (rank 8, alpha 16, all seven linears, PEFT's own start: A uniform, B zero), train50.json (the
hyper-parameters and the scalars of every step) and train50.safetensors:
  ids, labels        I64 [50, 2, 40]: step, micro-batch, token; one sequence per micro-batch; labels[t] is ids[t] or -100; position t-1 predicts it
  loss, grad_norm, lr  F32 / F32 / F64 [50]: mean NLL over all supervised tokens of the step before its update; norm before clipping; rate used
  final.<key>        F32, the adapter after step 50
  gentle.loss        F32 [50]: the same run at a tenth of the rate, at which bf16's rounding is not blown up: for backends that compute in bf16
One step: for both micro-batches, loss = (sum of NLL) / (supervised tokens of the whole step), backward; clip_grad_norm_(1.0) (which scales by
min(1, 1/(norm + 1e-6))); torch.optim.AdamW (betas 0.9 0.999, eps 1e-8, decoupled decay 0.01 on every LoRA tensor); then the cosine schedule with
ceil(50 * 0.1) = 5 warm-up steps, so that the first step runs at rate 0.

The base is quantised from fp32 copies of llama-tiny's weights, so the state's dtype is float32 and the backward of Linear4bit uses the same fp32 values as
the forward. The same run over dequantised weights in fp64 says how far rounding alone drifts: metadata `drift_fp64`.
"""

import math

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, get_cosine_schedule_with_warmup

from golden import ADAPTERS, HERE, LINEARS, MODELS, adapter_key, load_nf4_as_fp32, nll, no_bf16_gemm, save, save_adapter, save_json, versions

STEPS, MICRO, T = 50, 2, 40
LR, GENTLE_LR, DECAY, CLIP, WARMUP_RATIO = 1e-2, 1e-3, 0.01, 1.0, 0.1
BASE = "llama-tiny"


def data(vocab):
    """Sequences that step through the vocabulary by one of two strides, so there is something to learn; 6 to 38 tokens supervised."""
    gen = torch.Generator().manual_seed(77)
    r = lambda lo, hi: int(torch.randint(lo, hi, (1,), generator=gen))
    ids = torch.empty(STEPS, MICRO, T, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for s in range(STEPS):
        for m in range(MICRO):
            stride, start = (1, 5)[r(0, 2)], r(0, vocab - 3)
            ids[s, m] = 3 + (start + stride * torch.arange(T)) % (vocab - 3)
            first = r(2, T - 5)
            labels[s, m, first:] = ids[s, m, first:]
    return ids, labels


def linear4bit_base():
    quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(MODELS / BASE, quantization_config=quant, dtype=torch.float32,
                                                 attn_implementation="eager", device_map="cpu")
    for p in model.parameters():
        assert p.dtype in (torch.float32, torch.uint8), p.dtype
        if p.dtype == torch.uint8:
            assert p.quant_state.dtype == torch.float32
    assert no_bf16_gemm(model) == 14
    return model


def train(model, ids, labels, lr=LR):
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    sched = get_cosine_schedule_with_warmup(opt, math.ceil(STEPS * WARMUP_RATIO), STEPS)
    losses, norms, lrs = [], [], []
    for s in range(STEPS):
        n = int((labels[s, :, 1:] != -100).sum())
        total = 0.0
        for m in range(MICRO):
            logits = model(input_ids=ids[s, m][None], use_cache=False).logits[0]
            keep = torch.nn.functional.cross_entropy(logits[:-1], labels[s, m, 1:], ignore_index=-100, reduction="sum") / n
            keep.backward()
            total += keep.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, CLIP)))
        lrs.append(opt.param_groups[0]["lr"])
        losses.append(total)
        opt.step()
        sched.step()
        opt.zero_grad()
    return losses, norms, lrs


def main():
    torch.manual_seed(4242)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=list(LINEARS))
    model = get_peft_model(linear4bit_base(), config)
    init = save_adapter(model, "train50_init", f"models/{BASE}")
    ids, labels = data(model.config.vocab_size)

    start = {adapter_key(n): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    stored = load_file(init / "adapter_model.safetensors")
    assert start.keys() == stored.keys() and all(torch.equal(start[k], stored[k]) for k in start)

    losses, norms, lrs = train(model, ids, labels)
    final = {adapter_key(n): p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def again(dtype):
        torch.set_default_dtype(dtype)
        try:
            base = load_nf4_as_fp32(MODELS / BASE).to(dtype)
            other = PeftModel.from_pretrained(base, init, is_trainable=True, autocast_adapter_dtype=False).to(dtype)
            return train(other, ids, labels)
        finally:
            torch.set_default_dtype(torch.float32)

    gentle = train(PeftModel.from_pretrained(linear4bit_base(), init, is_trainable=True), ids, labels, GENTLE_LR)[0]
    print("gentle losses", [round(x, 3) for x in gentle])
    plain32, exact = again(torch.float32), again(torch.float64)
    worst = lambda a, b: max(abs(x - y) for x, y in zip(a, b))
    drift = {"loss_fp32_dequantised": worst(losses, plain32[0]), "loss_fp64_dequantised": worst(losses, exact[0]),
             "grad_norm_fp64_dequantised": worst(norms, exact[1])}
    print("losses", [round(x, 3) for x in losses])
    print("norms", [round(x, 3) for x in norms])
    print("drift", drift)
    assert drift["loss_fp64_dequantised"] < 2e-4

    supervised = [[int((labels[s, m, 1:] != -100).sum()) for m in range(MICRO)] for s in range(STEPS)]
    save(HERE / "train50.safetensors", {"ids": ids, "labels": labels, "loss": torch.tensor(losses), "grad_norm": torch.tensor(norms), "gentle.loss": torch.tensor(gentle),
         "lr": torch.tensor(lrs, dtype=torch.float64), **{f"final.{k}": v for k, v in final.items()}}, "make_train50.py",
         ("transformers", "peft", "bitsandbytes", "accelerate"), base=BASE, drift_fp64=drift)
    save_json(HERE / "train50.json", {
        "versions": versions("transformers", "peft", "bitsandbytes", "accelerate"), "base": f"models/{BASE}", "init": "adapters/train50_init",
        "modules": "bitsandbytes Linear4bit, NF4, double quantisation, fp32 compute", "steps": STEPS, "micro_batches": MICRO, "tokens": T,
        "lr": LR, "gentle_lr": GENTLE_LR, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": DECAY, "clip": CLIP, "schedule": "cosine",
        "warmup_steps": math.ceil(STEPS * WARMUP_RATIO), "drift": drift,
        "steps_log": [{"loss": l, "grad_norm": g, "lr": r, "supervised": n} for l, g, r, n in zip(losses, norms, lrs, supervised)]})


if __name__ == "__main__":
    main()
