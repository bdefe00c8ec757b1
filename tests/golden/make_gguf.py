"""GGUF files made by the gguf package, and what it reads from them.

Run:  python tests/golden/make_gguf.py        (needs gguf, and llama-cpp-python for ggml's own Q4_K and Q6_K encoders)
Writes gguf.gguf: keys of every value type, a tensor of every element type handled here, alignment 64.
Writes gguf_model.gguf: a llama of one layer, each matrix of another type.
Writes gguf.safetensors:
  x              F32 [8,256]   normal values, one row of zeros, one row of a constant, one sparse row
  TYPE.blocks    U8            x encoded by the gguf package (Q8_0, Q4_0, F16, BF16) or by ggml (Q4_K, Q6_K)
  TYPE.values    F32 [8,256]   what the gguf package decodes these to
  model.ids, model.logits      of gguf_model.gguf, by transformers in fp32 on the weights that the gguf package decodes
  TYPE.any       U8            blocks of random bytes with finite scales, TYPE.any_values F32 what they decode to
"""

import ctypes
import glob
import os

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T

from golden import HERE, save

TYPES = {"f16": T.F16, "bf16": T.BF16, "q8_0": T.Q8_0, "q4_0": T.Q4_0, "q4_k": T.Q4_K, "q6_k": T.Q6_K}


def ggml_encode(kind, x):
    import llama_cpp

    folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
    ggml = ctypes.CDLL(glob.glob(os.path.join(folder, "libggml-base.so*"))[0])
    size_t, i64, p = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
    ggml.ggml_quantize_chunk.restype = size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, p, p, i64, i64, i64, p]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((x.shape[0], x.shape[1] // block * size), np.uint8)
    ggml.ggml_quantize_chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], None)
    return out


def encode(name, x):
    if name in ("q4_k", "q6_k"):
        return ggml_encode(TYPES[name], x)
    return gguf.quants.quantize(x, TYPES[name]).view(np.uint8)


def any_blocks(name, rng):
    """Random bytes; the 16-bit scales random numbers of ordinary size."""
    block, size = gguf.GGML_QUANT_SIZES[TYPES[name]]
    raw = rng.integers(0, 256, (4, size), dtype=np.uint8)
    for at in {"q8_0": [0], "q4_0": [0], "q4_k": [0, 2], "q6_k": [208]}[name]:
        raw[:, at : at + 2] = rng.standard_normal((4, 1)).astype(np.float16).view(np.uint8)
    return raw


# name in the folder, name in the file, type, shape, heads whose rows are stored pair by pair
MATRICES = [
    ("model.embed_tokens", "token_embd", T.Q6_K, (64, 256), 0),
    ("lm_head", "output", T.Q8_0, (64, 256), 0),
    ("model.layers.0.self_attn.q_proj", "blk.0.attn_q", T.Q4_K, (64, 256), 2),
    ("model.layers.0.self_attn.k_proj", "blk.0.attn_k", T.Q8_0, (32, 256), 1),
    ("model.layers.0.self_attn.v_proj", "blk.0.attn_v", T.F16, (32, 256), 0),
    ("model.layers.0.self_attn.o_proj", "blk.0.attn_output", T.BF16, (256, 64), 0),
    ("model.layers.0.mlp.gate_proj", "blk.0.ffn_gate", T.Q4_0, (128, 256), 0),
    ("model.layers.0.mlp.up_proj", "blk.0.ffn_up", T.Q4_K, (128, 256), 0),
    ("model.layers.0.mlp.down_proj", "blk.0.ffn_down", T.Q4_0, (256, 128), 0),
]
NORMS = [("model.norm", "output_norm"), ("model.layers.0.input_layernorm", "blk.0.attn_norm"), ("model.layers.0.post_attention_layernorm", "blk.0.ffn_norm")]


def pairs(w, heads):
    """Rows of a head half by half, to pair by pair."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape) if heads else w


def halves(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape) if heads else w


def model(out):
    from transformers import LlamaConfig, LlamaForCausalLM

    rng = np.random.default_rng(11)
    w = gguf.GGUFWriter(HERE / "gguf_model.gguf", "llama")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(256)
    w.add_feed_forward_length(128)
    w.add_head_count(2)
    w.add_head_count_kv(1)
    w.add_key_length(32)
    w.add_value_length(32)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(32)
    w.add_rope_freq_base(5000.0)
    w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(2.0)
    w.add_vocab_size(64)
    w.add_tokenizer_model("no_vocab")
    state = {}
    for path, name, kind, shape, heads in MATRICES:
        x = pairs((rng.standard_normal(shape) * (1.0 if "embed" in path else 0.08)).astype(np.float32), heads)
        blocks = x if kind == T.F32 else ggml_encode(kind, x) if kind in (T.Q4_K, T.Q6_K) else gguf.quants.quantize(x, kind)
        state[path + ".weight"] = torch.from_numpy(halves(gguf.quants.dequantize(blocks, kind).astype(np.float32), heads).copy())
        if kind in (T.F32, T.F16):
            w.add_tensor(name + ".weight", blocks)
        else:
            w.add_tensor(name + ".weight", blocks.view(np.uint8), raw_dtype=kind)
    for path, name in NORMS:
        x = (1 + rng.standard_normal(256) * 0.2).astype(np.float32)
        state[path + ".weight"] = torch.from_numpy(x)
        w.add_tensor(name + ".weight", x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.chmod(HERE / "gguf_model.gguf", 0o644)
    config = LlamaConfig(hidden_size=256, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                         vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
                         rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=5000.0), attn_implementation="eager")
    lm = LlamaForCausalLM(config).eval()
    lm.load_state_dict(state, strict=True)
    ids = torch.tensor([(i * 37 + 5) % 64 for i in range(12)])
    with torch.no_grad():
        out["model.ids"], out["model.logits"] = ids, lm(input_ids=ids[None], use_cache=False).logits[0]


def main():
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((8, 256)) * 0.1).astype(np.float32)
    x[5] = 0
    x[6] = 0.37
    x[7] = np.where(rng.uniform(size=256) < 0.05, x[7], np.float32(0))
    out = {"x": torch.from_numpy(x)}
    w = gguf.GGUFWriter(HERE / "gguf.gguf", "llama")
    w.add_custom_alignment(64)
    w.add_key_value("test.u8", 200, gguf.GGUFValueType.UINT8)
    w.add_key_value("test.i8", -100, gguf.GGUFValueType.INT8)
    w.add_key_value("test.u16", 60000, gguf.GGUFValueType.UINT16)
    w.add_key_value("test.i16", -30000, gguf.GGUFValueType.INT16)
    w.add_key_value("test.u32", 4000000000, gguf.GGUFValueType.UINT32)
    w.add_key_value("test.i32", -2000000000, gguf.GGUFValueType.INT32)
    w.add_key_value("test.u64", 1 << 62, gguf.GGUFValueType.UINT64)
    w.add_key_value("test.i64", -(1 << 62), gguf.GGUFValueType.INT64)
    w.add_key_value("test.f32", 0.1, gguf.GGUFValueType.FLOAT32)
    w.add_key_value("test.f64", 0.1, gguf.GGUFValueType.FLOAT64)
    w.add_key_value("test.bool", True, gguf.GGUFValueType.BOOL)
    w.add_key_value("test.string", "Grüße ", gguf.GGUFValueType.STRING)
    w.add_array("test.i32s", [1, -2, 3])
    w.add_array("test.f32s", [0.5, -1.5])
    w.add_array("test.bools", [True, False, True])
    w.add_array("test.strings", ["a", "", "ü"])
    for name, kind in TYPES.items():
        blocks = encode(name, x)
        values = gguf.quants.dequantize(blocks, kind)
        out[name + ".blocks"] = torch.from_numpy(blocks.copy())
        out[name + ".values"] = torch.from_numpy(values.astype(np.float32))
        w.add_tensor("t." + name, blocks, raw_dtype=kind)
        if kind not in (T.F16, T.BF16):
            raw = any_blocks(name, rng)
            out[name + ".any"] = torch.from_numpy(raw)
            out[name + ".any_values"] = torch.from_numpy(gguf.quants.dequantize(raw, kind).astype(np.float32))
    w.add_tensor("t.f32", x[:3, :5].copy())
    w.add_tensor("t.vector", x[0, :7].copy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.chmod(HERE / "gguf.gguf", 0o644)
    model(out)
    save(HERE / "gguf.safetensors", out, "make_gguf.py", ("gguf", "llama-cpp-python", "transformers"))


if __name__ == "__main__":
    main()
