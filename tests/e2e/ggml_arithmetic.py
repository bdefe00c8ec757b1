"""llama.cpp's arithmetic in numpy: a Llama GGUF file's logits with activations rounded as ggml rounds them before each product.

    logits = ggml_arithmetic.logits(path, ids)                   # [T,V], activations rounded
    logits = ggml_arithmetic.logits(path, ids, rounded=False)    # the same file, nothing rounded

ggml multiplies a matrix of blocks by activations that it has first brought to 8 bits (ggml-cpu.c's table of vec_dot types): in blocks of 32 with a 16-bit
scale beside Q8_0 and Q4_0, in blocks of 256 with an fp32 scale beside Q4_K and Q6_K; beside F16 and BF16 it rounds them to that type. Sums are fp64 here, so
what differs from llama.cpp's logits is its fp32 sums and the codes that these tip over. Dense Llama without scaled RoPE: what stories260K and the model
trained in test_gguf.py are.
"""

import numpy as np


def blocks_of_32(x):
    """Q8_0: the scale is kept in 16 bits, the codes are chosen with the one that is not."""
    b = x.astype(np.float32).reshape(-1, 32)
    scale = np.abs(b).max(1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return (np.rint(b * inverse) * scale.astype(np.float16).astype(np.float32)).reshape(x.shape)


def blocks_of_256(x):
    """Q8_K: the value of largest magnitude becomes -127."""
    b = x.astype(np.float32).reshape(-1, 256)
    most = np.take_along_axis(b, np.abs(b).argmax(1)[:, None], 1)
    inverse = np.divide(-127, most, out=np.zeros_like(most), where=most != 0)
    codes = np.minimum(127, np.rint(b * inverse))
    return (codes * np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse != 0)).reshape(x.shape)


def bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


ROUND = {"F32": lambda x: x, "F16": lambda x: x.astype(np.float16), "BF16": bf16, "Q8_0": blocks_of_32, "Q4_0": blocks_of_32, "Q4_K": blocks_of_256,
         "Q6_K": blocks_of_256}


class Model:
    def __init__(self, path, rounded):
        import gguf

        reader = gguf.GGUFReader(path)
        self.rounded = rounded
        self.tensors = {t.name: (gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64), t.tensor_type.name) for t in reader.tensors}
        value = lambda key, default=None: reader.fields[key].contents() if key in reader.fields else default
        self.layers, self.heads = value("llama.block_count"), value("llama.attention.head_count")
        self.kv_heads, self.eps = value("llama.attention.head_count_kv"), value("llama.attention.layer_norm_rms_epsilon")
        self.theta = value("llama.rope.freq_base", 10000.0)

    def product(self, x, name):
        weight, kind = self.tensors[name + ".weight"]
        return (ROUND[kind](x) if self.rounded else x).astype(np.float64) @ weight.T

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.tensors[name + ".weight"][0]

    def rope(self, x):
        """Neighbours are pairs in a Llama's file: its rows are permuted for that."""
        d = x.shape[-1]
        angle = np.arange(x.shape[0])[:, None] * self.theta ** (-np.arange(0, d, 2) / d)
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)

    def attention(self, x, at):
        n = len(x)
        q = self.rope(self.product(x, at + "attn_q").reshape(n, self.heads, -1))
        k = self.rope(self.product(x, at + "attn_k").reshape(n, self.kv_heads, -1))
        v = self.product(x, at + "attn_v").reshape(n, self.kv_heads, -1)
        k, v = (np.repeat(m, self.heads // self.kv_heads, 1) for m in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1]) + np.triu(np.full((n, n), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v)
        return self.product(mixed.reshape(n, -1), at + "attn_output")

    def logits(self, ids):
        x = self.tensors["token_embd.weight"][0][list(ids)]
        for layer in range(self.layers):
            at = f"blk.{layer}."
            x = x + self.attention(self.norm(x, at + "attn_norm"), at)
            h = self.norm(x, at + "ffn_norm")
            gate = self.product(h, at + "ffn_gate")
            x = x + self.product(gate / (1 + np.exp(-gate)) * self.product(h, at + "ffn_up"), at + "ffn_down")
        return self.product(self.norm(x, "output_norm"), "output" if "output.weight" in self.tensors else "token_embd")


def logits(path, ids, rounded=True):
    return Model(path, rounded).logits(ids)
