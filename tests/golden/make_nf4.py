"""NF4 codes and double-quantised maxima of bitsandbytes' CPU backend, bit for bit.

Run:  python tests/golden/make_nf4.py        (needs bitsandbytes; LK_SHARED=... for the real matrix)
Writes nf4.safetensors. For each case in `cases` (metadata, JSON list):
  <case>.weight         the input, F32 / BF16 / F16, [rows, cols]
  <case>.codes          U8 [ceil(numel/2), 1], high nibble first
  <case>.absmax32       F32 [blocks], maxima before the second level
  <case>.absmax         U8 [blocks], <case>.nested_absmax F32 [ceil(blocks/256)], <case>.nested_offset F32 [1]: the second level
  <case>.absmax_dequant F32 [blocks], the maxima read back through the second level
  <case>.dequant        F32 [rows, cols] from the double-quantised maxima
For each n in `nested` (metadata): nested<n>.input F32 [n] and nested<n>.{absmax, nested_absmax, nested_offset, absmax_dequant}: the
second level alone, at sizes that exercise the order of the mean. Also quant_map F32 [16], nested_quant_map F32 [256].
Every tensor is asserted equal to nf4_rule.py's restatement before it is written.
"""

import numpy as np
import torch
import bitsandbytes.functional as F
from safetensors.torch import load_file

import nf4_rule as rule
from golden import HERE, save, shared

NESTED = (1, 2, 7, 8, 33, 255, 256, 257, 1000, 4099, 10007)


def normal(shape, seed, std=0.05):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def ties():
    """Every threshold exactly, one step above and one below, in a block whose maximum is 1; the rest zeros of both signs."""
    b = torch.from_numpy(rule.NF4_BOUNDS)
    inf = torch.tensor(float("inf"))
    x = torch.cat([b, torch.nextafter(b, inf), torch.nextafter(b, -inf), torch.tensor([-1.0, 1.0, 0.0, -0.0])])
    return torch.cat([x, torch.zeros(64 - len(x))]).reshape(1, 64)


def rounding(n, seed):
    """[1,n] whose values land on different codes by multiplying with the reciprocal and by dividing: pins which one is done."""
    rng = np.random.default_rng(seed)
    f32 = np.float32
    while True:
        m = f32(rng.uniform(0.5, 2.0))
        inv = f32(1) / m
        found = [m]
        for bound in rule.NF4_BOUNDS:
            x = f32(bound * m)
            for _ in range(4):
                x = np.nextafter(x, f32(-10))
            for _ in range(8):
                if (f32(x * inv) > bound) != (f32(x / m) > bound):
                    found.append(x)
                x = np.nextafter(x, f32(10))
        if len(found) >= 6:
            x = np.zeros(n, f32)
            x[: len(found)] = found
            return torch.from_numpy(x).reshape(1, n)


def cases():
    yield "normal_1x64", normal((1, 64), 1)
    yield "normal_3x5", normal((3, 5), 2)
    yield "normal_7x129", normal((7, 129), 3)
    yield "normal_64x172", normal((64, 172), 4)
    yield "normal_64x176", normal((64, 176), 5)
    yield "normal_128x192", normal((128, 192), 6)
    yield "normal_33x64", normal((33, 64), 7)
    yield "bf16_48x96", normal((48, 96), 8).bfloat16()
    yield "f16_31x65", normal((31, 65), 9).half()
    zero = normal((4, 100), 10)
    zero.view(-1)[64:192] = 0
    yield "zero_block_4x100", zero
    tail = normal((3, 50), 11)
    tail.view(-1)[128:] = 0
    yield "zero_tail_3x50", tail
    yield "all_zero_2x64", torch.zeros(2, 64)
    wide = normal((6, 64), 12, 1.0)
    wide *= torch.tensor([1e30, 1e-30, 1e4, 1.0, 5e-39, 1e-41])[:, None]
    yield "huge_small_6x64", wide
    yield "ties_1x64", ties()
    yield "reciprocal_1x64", rounding(64, 13)
    yield "division_1x63", rounding(63, 14)
    real = shared() / "models" / "stories260K" / "model.safetensors"
    if real.is_file():
        yield "stories_down_64x172", load_file(real)["model.layers.2.mlp.down_proj.weight"]


def same(got, want, what):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape and got.tobytes() == want.tobytes(), (what, np.argwhere(got != want)[:5], got.shape, want.shape)


def main():
    out, names = {}, []
    code = F.create_dynamic_map()
    table = code.numpy()
    for name, w in cases():
        w = w.contiguous()
        flat = w.reshape(-1).float().numpy()
        codes, plain = F.quantize_4bit(w, quant_type="nf4", compress_statistics=False)
        codes2, nested = F.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
        same(codes2, codes, name)
        absmax = F.dequantize_blockwise(nested.absmax, nested.state2) + nested.offset

        my_codes, my_absmax = rule.quantize_nf4(flat)
        my_q, my_nested, my_offset = rule.quantize_absmax(my_absmax, table)
        same(my_codes, codes.reshape(-1), name + ".codes")
        same(my_absmax, plain.absmax, name + ".absmax32")
        same(my_q, nested.absmax, name + ".absmax")
        same(my_nested, nested.state2.absmax, name + ".nested_absmax")
        same(my_offset, nested.offset, name + ".nested_offset")
        same(rule.dequantize_absmax(my_q, my_nested, my_offset, table), absmax, name + ".absmax_dequant")

        # As one long row: the library's AVX-512 routine mistakes the scale where blocks cross rows (see README.md).
        def dequantise(a):
            n = w.numel() + w.numel() % 2
            row = torch.ops.bitsandbytes.dequantize_4bit.default(codes, a, 64, "nf4", (1, n), torch.float32)
            return row.reshape(-1)[: w.numel()].reshape(w.shape)

        d32, d = dequantise(plain.absmax), dequantise(absmax)
        same(rule.dequantize_nf4(my_codes, my_absmax, w.numel()), d32.reshape(-1), name + ": dequantised from absmax32")
        same(rule.dequantize_nf4(my_codes, absmax.numpy(), w.numel()), d.reshape(-1), name + ".dequant")
        own = F.dequantize_4bit(codes, plain).float()
        if not torch.equal(own, d32.to(w.dtype).float()):
            print(f"note: {name}: the library's own dequantize_4bit differs in {(own != d32).sum()} of {w.numel()} values")
        names.append(name)
        out.update({f"{name}.weight": w, f"{name}.codes": codes, f"{name}.absmax32": plain.absmax, f"{name}.absmax": nested.absmax,
                    f"{name}.nested_absmax": nested.state2.absmax, f"{name}.nested_offset": nested.offset.reshape(1),
                    f"{name}.absmax_dequant": absmax, f"{name}.dequant": d})

    for n in NESTED:
        x = torch.rand(n, generator=torch.Generator().manual_seed(1000 + n)) * 0.2 + 0.02
        offset = x.mean()
        q, state = F.quantize_blockwise(x - offset, blocksize=256)
        absmax = F.dequantize_blockwise(q, state) + offset
        my_q, my_nested, my_offset = rule.quantize_absmax(x.numpy(), table)
        same(my_offset, offset, f"nested{n}.nested_offset")
        same(my_q, q, f"nested{n}.absmax")
        same(my_nested, state.absmax, f"nested{n}.nested_absmax")
        same(rule.dequantize_absmax(my_q, my_nested, my_offset, table), absmax, f"nested{n}.absmax_dequant")
        out.update({f"nested{n}.input": x, f"nested{n}.absmax": q, f"nested{n}.nested_absmax": state.absmax,
                    f"nested{n}.nested_offset": offset.reshape(1), f"nested{n}.absmax_dequant": absmax})

    out["quant_map"] = F.get_4bit_type("nf4", device="cpu")
    out["nested_quant_map"] = code
    same(rule.NF4, out["quant_map"], "quant_map")
    same(rule.dynamic_map(), code, "nested_quant_map")
    save(HERE / "nf4.safetensors", out, "make_nf4.py", ("bitsandbytes",), cases=names, nested=list(NESTED))


if __name__ == "__main__":
    main()
