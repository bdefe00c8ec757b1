"""llama-tiny as a bitsandbytes 4-bit checkpoint, written by transformers, and its logits.

Run:  python tests/golden/make_bnb_model.py        (after make_models.py; needs transformers, accelerate, bitsandbytes)
Writes models/llama-tiny-bnb4/ (NF4, double quantisation; the other weights stay bf16, so the quantisation state says bfloat16) and
logits_llama-tiny-bnb4.safetensors: `ids`, `logits` from Linear4bit modules computing in fp32.
Checked here: the logits agree with those over weights dequantised to fp32 by hand.
"""

import shutil

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from golden import HERE, MODELS, load_nf4_as_fp32, no_bf16_gemm, save


def main():
    quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=torch.float32)
    src, dst = MODELS / "llama-tiny", MODELS / "llama-tiny-bnb4"
    shutil.rmtree(dst, ignore_errors=True)
    AutoModelForCausalLM.from_pretrained(src, quantization_config=quant, dtype=torch.bfloat16, device_map="cpu").save_pretrained(dst)
    (dst / "generation_config.json").unlink(missing_ok=True)
    (dst / "model.safetensors").chmod(0o644)

    model = AutoModelForCausalLM.from_pretrained(dst, dtype=torch.float32, attn_implementation="eager", device_map="cpu").eval()
    for p in model.parameters():  # transformers keeps a quantised checkpoint's other weights in the dtype they were saved in
        if p.is_floating_point():
            p.data = p.data.float()
    n = no_bf16_gemm(model)
    ids = load_file(HERE / "logits_llama-tiny.safetensors")["ids"]
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        by_hand = load_nf4_as_fp32(src)(input_ids=ids[None], use_cache=False).logits[0]
    diff = (logits - by_hand).abs().max()
    print(f"{n} Linear4bit; largest difference to dequantised by hand: {diff:.2e}; "
          f"to 16-bit: {(logits - load_file(HERE / 'logits_llama-tiny.safetensors')['logits']).abs().max():.3f}")
    assert diff < 1e-5, diff
    save(HERE / "logits_llama-tiny-bnb4.safetensors", {"ids": ids, "logits": logits}, "make_bnb_model.py",
         ("transformers", "bitsandbytes", "accelerate"))


if __name__ == "__main__":
    main()
