"""Tiny random models of four architectures as Hugging Face folders, and the logits transformers computes from them in fp32.

Run:  python tests/golden/make_models.py        (LK_SHARED=... if ../shared is not beside the project)
Writes models/{llama,qwen2,qwen3,mistral}-tiny/ and logits_{those, stories260K}.safetensors: `ids` I64 [T], `logits` F32 [T,V].

The weights are stored in 16 bits and widened to fp32 before anything is computed, so a reader that widens exactly starts from the same
numbers. What each model covers:
  llama-tiny    bf16, untied, llama3 RoPE scaling with frequencies on both sides of its bands, vocabulary 163 (a prime)
  qwen2-tiny    bf16, q/k/v biases (random, large enough to matter), untied, intermediate 176: blocks of 64 cross the rows of down_proj
  qwen3-tiny    bf16, three layers, tied head, head_dim 32 while hidden/heads is 16, q/k norms
  mistral-tiny  f16, linear RoPE scaling, config in the older spelling (rope_theta, rope_scaling) that most published folders have
Every norm weight is random and unlike one. The spread of the weights is such that attention and logits vary.
"""

import json

import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from golden import HERE, MODELS, load_fp32, random_ids, save, shared

COMMON = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
              pad_token_id=None)


def randomise(model, seed):
    gen = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if "norm" in name:
            p.data = 1.0 + 0.3 * noise
        elif name.endswith(".bias"):
            p.data = 0.4 * noise
        elif "embed_tokens" in name:
            p.data = (0.25 if model.config.tie_word_embeddings else 0.5) * noise
        else:
            p.data = 0.15 * noise


def make(name, cls, config, seed, dtype):
    model = cls(config)
    randomise(model, seed)
    if config.tie_word_embeddings:
        model.tie_weights()
    folder = MODELS / name
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    return folder


def old_rope_spelling(folder):
    """Rewrite rope_parameters as rope_theta and rope_scaling."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def logits(folder, ids, name, **more):
    model = load_fp32(folder)
    with torch.no_grad():
        out = model(input_ids=ids[None], use_cache=False).logits[0]
    print(f"{name}: logits std {out.std():.3f}, mean max prob {out.softmax(-1).max(-1).values.mean():.3f}")
    save(HERE / f"logits_{name}.safetensors", {"ids": ids, "logits": out.float()}, "make_models.py", ("transformers",), **more)


def main():
    llama3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64)
    plain = dict(rope_type="default", rope_theta=1000000.0)
    linear = dict(rope_type="linear", rope_theta=10000.0, factor=2.5)
    models = [
        ("llama-tiny", LlamaForCausalLM, LlamaConfig(vocab_size=163, intermediate_size=128, num_hidden_layers=2, rms_norm_eps=1e-5,
            tie_word_embeddings=False, rope_parameters=llama3, **COMMON), 11, torch.bfloat16),
        ("qwen2-tiny", Qwen2ForCausalLM, Qwen2Config(vocab_size=160, intermediate_size=176, num_hidden_layers=2, rms_norm_eps=1e-6,
            tie_word_embeddings=False, rope_parameters=plain, **COMMON), 12, torch.bfloat16),
        ("qwen3-tiny", Qwen3ForCausalLM, Qwen3Config(vocab_size=160, intermediate_size=128, num_hidden_layers=3, rms_norm_eps=1e-6,
            head_dim=32, tie_word_embeddings=True, rope_parameters=plain, **COMMON), 13, torch.bfloat16),
        ("mistral-tiny", MistralForCausalLM, MistralConfig(vocab_size=160, intermediate_size=176, num_hidden_layers=2, rms_norm_eps=1e-5,
            sliding_window=None, tie_word_embeddings=False, rope_parameters=linear, **COMMON), 14, torch.float16),
    ]
    for i, (name, cls, config, seed, dtype) in enumerate(models):
        folder = make(name, cls, config, seed, dtype)
        if name == "mistral-tiny":
            old_rope_spelling(folder)
        logits(folder, random_ids(config.vocab_size, 48, 100 + i), name)

    stories = shared() / "models" / "stories260K"
    if not stories.is_dir():
        print("stories260K: skipped, no shared folder")
        return
    greedy = json.loads((stories / "expected_greedy.json").read_text())["greedy_ids"]
    ids = torch.tensor([greedy])
    model = load_fp32(stories)
    with torch.no_grad():
        while ids.shape[1] < 96:
            nxt = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, nxt.view(1, 1)], 1)
    logits(stories, ids[0], "stories260K", published_prefix=str(len(greedy)))


if __name__ == "__main__":
    main()
