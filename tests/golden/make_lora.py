"""LoRA adapters as PEFT folders, and PEFT's logits, loss and gradients with them over NF4 bases.

Run:  python tests/golden/make_lora.py        (after make_models.py; needs transformers, peft, bitsandbytes)
Writes adapters/<name>/ and lora_<name>.safetensors for each row of ADAPTERS_ below; metadata `base` names the folder under models/.
  ids, labels         I64 [T]; labels[t] is ids[t] where supervised, else -100; position t-1 predicts it
  logits              F32 [T,V], the adapter over the base whose linear layers (not the head) went through NF4 with double quantisation
  logits_16bit        F32 [T,V], the same adapter over the base as stored
  loss                F32 [1], mean negative log-likelihood of the supervised tokens, from `logits`
  grad.<key>          F32, its gradient by each adapter tensor, <key> as in adapter_model.safetensors
All arithmetic fp32; the base is dequantised to fp32 once (not Linear4bit, whose CPU routine errs at width 176, see README.md). Every B is
random, so that all gradients are non-zero. Checked here: reloading the folder with PEFT gives the same logits bit for bit.
"""

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from golden import HERE, LINEARS, MODELS, adapter_key, load_fp32, load_nf4_as_fp32, nll, random_ids, save, save_adapter

ADAPTERS_ = [
    ("r8_all", "llama-tiny", dict(r=8, lora_alpha=16, target_modules=list(LINEARS))),
    ("mixed", "llama-tiny", dict(r=6, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"layers.0.self_attn.q_proj": 3, "down_proj": 16, r"model\.layers\.1\.self_attn\.v_.*": 1},
        alpha_pattern={"layers.0.self_attn.q_proj": 5, "v_proj": 9})),
    ("rslora", "llama-tiny", dict(r=4, lora_alpha=6, use_rslora=True, target_modules=["k_proj", "o_proj", "gate_proj", "up_proj"])),
    ("r8_all_qwen2", "qwen2-tiny", dict(r=8, lora_alpha=16, target_modules=list(LINEARS))),
    ("r8_all_qwen3", "qwen3-tiny", dict(r=8, lora_alpha=16, target_modules=list(LINEARS))),
]


def randomise(model, seed):
    gen = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=gen) * (0.1 if "lora_B" in name else 0.15)


def logits_of(model, ids):
    return model(input_ids=ids[None], use_cache=False).logits[0]


def make(name, base, options, seed):
    model = get_peft_model(load_nf4_as_fp32(MODELS / base), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **options))
    randomise(model, seed)
    model.eval()
    folder = save_adapter(model, name, f"models/{base}")

    ids = random_ids(model.config.vocab_size, 40, 200 + seed)
    labels = ids.clone()
    labels[:11] = -100
    labels[23:27] = -100
    logits = logits_of(model, ids)
    total, n = nll(logits, labels)
    loss = total / n
    loss.backward()
    out = {"ids": ids, "labels": labels, "logits": logits, "loss": loss.reshape(1)}
    scales = {}
    for pname, p in model.named_parameters():
        if p.requires_grad:
            assert "lora_" in pname and p.grad.abs().max() > 0, pname
            out["grad." + adapter_key(pname)] = p.grad
    for mname, m in model.named_modules():
        if isinstance(getattr(m, "scaling", None), dict) and m.scaling:
            scales[mname] = m.scaling["default"]

    with torch.no_grad():
        plain = logits_of(load_nf4_as_fp32(MODELS / base), ids)
        again = logits_of(PeftModel.from_pretrained(load_nf4_as_fp32(MODELS / base), folder).eval(), ids)
        assert torch.equal(again, logits), name
        out["logits_16bit"] = logits_of(PeftModel.from_pretrained(load_fp32(MODELS / base), folder).eval(), ids)
    print(f"{name}: loss {loss.item():.4f} over {n}; the adapter moves logits by {(plain - logits).abs().mean():.3f}")
    save(HERE / f"lora_{name}.safetensors", out, "make_lora.py", ("transformers", "peft", "bitsandbytes"), base=base, supervised=str(n),
         scales=scales)


def main():
    for i, (name, base, options) in enumerate(ADAPTERS_):
        make(name, base, options, i)


if __name__ == "__main__":
    main()
