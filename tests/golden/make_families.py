"""Every family of models, and every kind of rotary embedding: transformers' logits in fp32, and PEFT's LoRA gradients.

Run:  python tests/golden/make_families.py       (transformers, peft)
Writes families.json and families.safetensors. The models are not stored: their weights follow a rule (`values` below, and check_rule in
tests/model/test_families.c) from the names of their tensors, and families.json has config.json and the tensors of each.

  families.json         {"cases": [{"name", "config", "tensors": {name: [shape, base, spread]}, "runs": [length, ...], "adapter": rank or 0}]}
  NAME.LENGTH.ids       I64 [T]
  NAME.LENGTH.logits    F32 [T,V], of the whole sequence at once
  NAME.loss             F32 [1], mean negative log-likelihood of the last run's tokens from the 12th on, with the adapter
  NAME.grad.PATH.A, .B  F32, its gradients; PATH is the linear layer's name

The adapter has this rank at every linear layer, alpha twice that, and factors by the rule from "PATH.lora_A" and "PATH.lora_B". The
configurations are spelled as published files spell them: older ones with rope_theta and rope_scaling, newer ones with rope_parameters.
A case's runs are sequences of several lengths: within the window or the original context, and past it.

The gradients of mixtures of experts are in mixtures.safetensors (make_mixtures.py), under the same names.
"""

import json
import tempfile
import pathlib

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from golden import HERE, load_fp32, save, save_json, versions

RANK = 2
MASK = (1 << 64) - 1


def mixed(z):
    """splitmix64's output function."""
    z = ((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)) & np.uint64(MASK)
    z = ((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)) & np.uint64(MASK)
    return z ^ (z >> np.uint64(31))


def words(name, n):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        return mixed(np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def values(name, n, base, spread):
    """base + spread * u, u in [-1, 1): every step exact or rounded once in fp32."""
    u = (words(name, n) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return torch.from_numpy(np.float32(base) + np.float32(spread) * u)


def ids_of(name, n, vocab):
    return torch.from_numpy((3 + words(name + ".ids", n) % np.uint64(vocab - 3)).astype(np.int64))


def rule(name, config):
    if name.endswith("norm.weight"):
        return (0.0, 0.4) if config["model_type"].startswith("gemma") else (1.0, 0.4)
    if name.endswith(".bias"):
        return 0.0, 0.6
    if "embed_tokens" in name:
        return 0.0, 0.4 if config.get("tie_word_embeddings", config["model_type"] == "gemma3") else 0.8
    if name.endswith("mlp.gate.weight") or name.endswith("block_sparse_moe.gate.weight"):
        return 0.0, 1.0  # the router's choices must not hang on a rounding
    return 0.0, 0.3


BASE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=67,
            max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, hidden_act="silu", tie_word_embeddings=False)
GEMMA = {k: v for k, v in BASE.items() if k not in ("hidden_act",)} | dict(head_dim=16, hidden_activation="gelu_pytorch_tanh",
            tie_word_embeddings=True, sliding_window=8, query_pre_attn_scalar=24, rms_norm_eps=1e-6)


def whole(name, model_type, architecture, text, **more):
    """A model of images and text with this text part, as published: what is its family's default is left out."""
    vision = dict(model_type="siglip_vision_model" if model_type == "gemma3" else "pixtral", hidden_size=16, intermediate_size=8, num_hidden_layers=1,
                  num_attention_heads=2, image_size=8, patch_size=4, head_dim=8)
    return name, dict(model_type=model_type, architectures=[architecture], eos_token_id=[1, 2], text_config=text, vision_config=vision) | more, [40], RANK


def case(name, model_type, architecture, runs=(40,), adapter=RANK, base=BASE, **more):
    return name, dict(base) | dict(model_type=model_type, architectures=[architecture], pad_token_id=0) | more, list(runs), adapter


FACTORS = [1.0 + 0.25 * i for i in range(2)], [2.0 + 1.5 * i for i in range(2)]
CASES = [
    case("llama", "llama", "LlamaForCausalLM", attention_bias=True, mlp_bias=True, rope_theta=10000.0),
    case("llama_linear", "llama", "LlamaForCausalLM", adapter=0, rope_theta=500.0, rope_scaling=dict(type="linear", factor=4.0)),
    case("llama_dynamic", "llama", "LlamaForCausalLM", (12, 40), adapter=0, rope_theta=10000.0, max_position_embeddings=24,
         rope_scaling=dict(type="dynamic", factor=4.0)),
    case("llama_llama3", "llama", "LlamaForCausalLM", adapter=0, rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0,
         low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    case("qwen2_yarn", "qwen2", "Qwen2ForCausalLM", adapter=0, rope_theta=1000.0,
         rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32)),
    case("llama_yarn", "llama", "LlamaForCausalLM", adapter=0, rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0,
         original_max_position_embeddings=32, beta_fast=4.0, beta_slow=0.25, truncate=False, attention_factor=1.25)),
    case("mistral", "mistral", "MistralForCausalLM", sliding_window=8, rope_theta=10000.0),
    case("qwen2", "qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=8, max_window_layers=1, rope_theta=1000000.0),
    case("qwen3", "qwen3", "Qwen3ForCausalLM", head_dim=16, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    case("gemma2", "gemma2", "Gemma2ForCausalLM", (6, 40), base=GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=4.0,
         rope_theta=10000.0, num_hidden_layers=3),
    case("gemma3", "gemma3_text", "Gemma3ForCausalLM", (6, 40), base=GEMMA, num_hidden_layers=3, sliding_window_pattern=2,
         rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
    case("gemma3_new", "gemma3_text", "Gemma3ForCausalLM", base=GEMMA, adapter=0, num_hidden_layers=7, rope_parameters=dict(
         full_attention=dict(rope_type="linear", factor=2.0, rope_theta=500000.0), sliding_attention=dict(rope_type="default", rope_theta=5000.0))),
    case("phi3", "phi3", "Phi3ForCausalLM", (12, 40), partial_rotary_factor=0.5, original_max_position_embeddings=16, rope_theta=10000.0,
         rope_scaling=dict(type="longrope", short_factor=FACTORS[0], long_factor=FACTORS[1])),
    case("phi3_plain", "phi3", "Phi3ForCausalLM", adapter=0, rope_theta=10000.0, sliding_window=10),
    case("olmo2", "olmo2", "Olmo2ForCausalLM", rope_theta=500000.0),
    case("granite", "granite", "GraniteForCausalLM", tie_word_embeddings=True, embedding_multiplier=12.0, residual_multiplier=0.22,
         attention_multiplier=0.0625, logits_scaling=3.0, rope_theta=10000.0),
    case("smollm3", "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=3, tie_word_embeddings=True, no_rope_layers=[1, 0, 1],
         rope_theta=2000000.0),
    case("smollm3_plain", "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=4, adapter=0, tie_word_embeddings=True, rope_theta=50000.0,
         use_sliding_window=True, sliding_window=8),
    case("mixtral", "mixtral", "MixtralForCausalLM", num_local_experts=5, num_experts_per_tok=2, rope_theta=1000000.0, output_router_logits=False,
         intermediate_size=24),
    case("qwen3_moe", "qwen3_moe", "Qwen3MoeForCausalLM", num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16, norm_topk_prob=True,
         head_dim=16, decoder_sparse_step=1, mlp_only_layers=[], rope_theta=1000000.0, use_sliding_window=False),
    case("qwen3_moe_as_is", "qwen3_moe", "Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
         norm_topk_prob=False, head_dim=8, num_hidden_layers=1, rope_theta=1000000.0),
    case("qwen3_moe_dense", "qwen3_moe", "Qwen3MoeForCausalLM", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True,
         head_dim=8, num_hidden_layers=3, mlp_only_layers=[1], rope_theta=1000000.0),
    case("qwen3_moe_step", "qwen3_moe", "Qwen3MoeForCausalLM", num_experts=3, num_experts_per_tok=1, moe_intermediate_size=64, norm_topk_prob=False,
         head_dim=8, num_hidden_layers=3, mlp_only_layers=[], decoder_sparse_step=2, rope_theta=1000000.0),
    case("mixtral_window", "mixtral", "MixtralForCausalLM", num_local_experts=2, num_experts_per_tok=2, sliding_window=8, rope_theta=10000.0,
         intermediate_size=16, num_hidden_layers=1, head_dim=16),
    whole("gemma3_whole", "gemma3", "Gemma3ForConditionalGeneration", dict(model_type="gemma3_text", hidden_size=32, intermediate_size=48,
          num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=67, sliding_window=8,
          rope_scaling=dict(factor=8.0, rope_type="linear")), mm_tokens_per_image=4, image_token_index=66, boi_token_index=65, eoi_token_index=64),
    whole("mistral3_whole", "mistral3", "Mistral3ForConditionalGeneration", dict(model_type="mistral", hidden_size=32, intermediate_size=48,
          num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=67, sliding_window=None, rope_theta=1000000.0,
          max_position_embeddings=128, rms_norm_eps=1e-5, hidden_act="silu"), image_token_index=66, spatial_merge_size=2, vision_feature_layer=-1,
          tie_word_embeddings=False),
]


def load(folder):
    """load_fp32, also of models of images and text that are not causal language models to transformers."""
    from transformers import AutoModelForImageTextToText

    if "text_config" not in json.loads((folder / "config.json").read_text()):
        return load_fp32(folder)
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def text_of(path):
    """The name of a layer in the text part by itself."""
    return path.replace("model.language_model.", "model.")


def linear_layers(model):
    """{path: shape} of the linear layers of the blocks, without those of images."""
    return {n: tuple(m.weight.shape) for n, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and ".layers." in n and "vision_tower" not in n}


def factors(path, shape, rank):
    """A and B of a layer by the rule."""
    a = values(path + ".lora_A", rank * shape[1], 0.0, 0.25).reshape(rank, shape[1])
    b = values(path + ".lora_B", shape[0] * rank, 0.0, 0.2).reshape(shape[0], rank)
    return a, b


def loss_of(logits, ids):
    """From the 12th token on; each is predicted one before."""
    return torch.nn.functional.cross_entropy(logits[10:-1].float(), ids[11:])


def gradients(folder, name, ids, rank, out, targets=None):
    from peft import LoraConfig, get_peft_model

    model = load(folder)
    layers = linear_layers(model)
    images = any("vision_tower" in n for n, _ in model.named_modules())
    targets = targets or sorted({n if images else n.rsplit(".", 1)[-1] for n in layers})
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")).eval()
    leaves = {}
    with torch.no_grad():
        for n, m in model.named_modules():
            if hasattr(m, "lora_A") and "default" in m.lora_A:
                path = n.removeprefix("base_model.model.")
                a, b = factors(text_of(path), layers[path], rank)
                m.lora_A["default"].weight.copy_(a)
                m.lora_B["default"].weight.copy_(b)
                leaves[path] = m.lora_A["default"].weight, m.lora_B["default"].weight
    assert set(leaves) == set(layers), set(layers) - set(leaves)
    loss = loss_of(model(input_ids=ids[None], use_cache=False).logits[0], ids)
    loss.backward()
    out[f"{name}.loss"] = loss.reshape(1)
    for path, (a, b) in leaves.items():
        path = text_of(path)
        assert a.grad.abs().max() > 0 and b.grad.abs().max() > 0, (name, path)
        out[f"{name}.grad.{path}.A"], out[f"{name}.grad.{path}.B"] = a.grad, b.grad


def build(folder, config):
    """The folder of a case; returns its tensors as families.json lists them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    (folder / "config.json").write_text(json.dumps(config))
    empty = (AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM).from_config(AutoConfig.from_pretrained(folder))
    with tempfile.TemporaryDirectory() as spare:
        empty.save_pretrained(spare)  # for the names that files have
        with safe_open(pathlib.Path(spare) / "model.safetensors", "pt") as st:
            shapes = {k: list(st.get_slice(k).get_shape()) for k in sorted(st.keys())}
    tensors = {k: [shape, *rule(k, config)] for k, shape in shapes.items()}
    made = {k: values(k, int(np.prod(shape)), base, spread).reshape(shape).to(torch.bfloat16) for k, (shape, base, spread) in tensors.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def main():
    cases, out = [], {}
    for name, config, runs, rank in CASES:
        with tempfile.TemporaryDirectory() as spare:
            folder = pathlib.Path(spare)
            tensors = build(folder, config)
            for n in runs:
                ids = ids_of(name, n, (config.get("text_config") or config)["vocab_size"] - (3 if "text_config" in config else 0))
                model = load(folder)  # anew: a dynamic RoPE remembers
                with torch.no_grad():
                    logits = model(input_ids=ids[None], use_cache=False).logits[0]
                print(f"{name} {n}: logits std {logits.std():.3f}, mean max prob {logits.softmax(-1).max(-1).values.mean():.3f}")
                out[f"{name}.{n}.ids"], out[f"{name}.{n}.logits"] = ids, logits
            if rank and "num_experts_per_tok" not in config:
                gradients(folder, name, ids, rank, out)
        cases.append(dict(name=name, config=config, tensors=tensors, runs=runs, adapter=rank))
    save(HERE / "families.safetensors", out, "make_families.py", ("transformers", "peft"))
    text = ",\n".join(json.dumps(c) for c in cases)
    (HERE / "families.json").write_text('{"versions": ' + json.dumps(versions("transformers", "peft")) + ', "cases": [\n' + text + "\n]}\n")


if __name__ == "__main__":
    main()
