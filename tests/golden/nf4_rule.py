"""bitsandbytes' 4-bit quantisation on the CPU, restated step by step in numpy float32 (README.md has it in words).

make_nf4.py asserts that this gives the library's bits on every case it writes; it is also the readable form for whoever ports the rule.
"""

import numpy as np

f32 = np.float32

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], f32)
NF4_BOUNDS = ((NF4[:-1] + NF4[1:]) / f32(2)).astype(f32)
TINY = f32(1e-38)  # subnormal in fp32; nothing may flush it to zero


def quantize_nf4(flat, block=64):
    """flat: float32 [n]. Returns packed codes uint8 [ceil(n/2)] and absmax float32 [ceil(n/block)]."""
    n = len(flat)
    codes = np.zeros(n + n % 2, np.uint8)
    codes[n:] = 7
    absmax = np.zeros(-(-n // block), f32)
    for b in range(len(absmax)):
        x = flat[b * block : (b + 1) * block]
        m = np.abs(x).max()
        if len(x) == block:
            absmax[b] = m  # a zero block keeps 0 here and its codes become 7
            v = (x * (f32(1) / max(m, TINY))).astype(f32)
        else:
            absmax[b] = max(m, TINY)  # the last, short block divides, and stores the raised maximum
            v = (x / absmax[b]).astype(f32)
        v = np.clip(v, f32(-1), f32(1))
        codes[b * block : b * block + len(x)] = np.searchsorted(NF4_BOUNDS, v, side="left")  # how many bounds are < v
    return (codes[0::2] << 4) | codes[1::2], absmax


def mean(a, lanes=8, ilp=4, levels=4):
    """torch's fp32 mean of a contiguous vector on one x86-64 thread: a cascade of partial sums, 4 vectors of 8 lanes side by side."""
    n = len(a)
    n_vec = n // lanes
    vec = a[: n_vec * lanes].reshape(n_vec, lanes)
    size = n_vec // ilp
    power = max(4, (max(size, 1) - 1).bit_length() // levels)  # ceil(log2(size)) / 4, at least 4
    step, mask = 1 << power, (1 << power) - 1
    acc = np.zeros((levels, ilp, lanes), f32)
    i = 0
    while i + step <= size:
        for _ in range(step):
            acc[0] += vec[i * ilp : (i + 1) * ilp]
            i += 1
        for j in range(1, levels):
            acc[j] += acc[j - 1]
            acc[j - 1] = 0
            if i & (mask << (j * power)):
                break
    for i in range(i, size):
        acc[0] += vec[i * ilp : (i + 1) * ilp]
    for j in range(1, levels):
        acc[0] += acc[j]
    part = acc[0]
    for k in range(size * ilp, n_vec):
        part[0] += vec[k]
    for k in range(1, ilp):
        part[0] += part[k]
    total = f32(0)
    for x in a[n_vec * lanes :]:
        total = f32(total + x)
    for x in part[0]:
        total = f32(total + x)
    return f32(total / f32(n))


def dynamic_map():
    """The signed dynamic map. torch's linspace fuses its multiply and add: one rounding, which fp64 arithmetic gives here."""
    out = [0.0, 1.0]
    for i in range(7):
        n = 2**i + 1
        step = float(f32(f32(f32(1) - f32(0.1)) / f32(n - 1)))
        edge = np.array([float(f32(0.1)) + step * k if k < n // 2 else 1.0 - step * (n - 1 - k) for k in range(n)]).astype(f32)
        means = (f32(10.0 ** (i - 6)) * ((edge[:-1] + edge[1:]) / f32(2)).astype(f32)).astype(f32)
        out += means.tolist() + (-means).tolist()
    return np.sort(np.array(out, f32))


def code_table(code):
    """The 65536-entry table through which the CPU library finds an 8-bit code."""
    mid = (f32(0.5) * (code[:-1] + code[1:])).astype(f32)
    grid = (f32(-1) + (f32(2) * np.arange(65536, dtype=f32)) / f32(65535)).astype(f32)
    return np.searchsorted(mid, grid, side="left").astype(np.uint8)  # how many midpoints are < the grid's value


def quantize_8bit(x, code, block=256):
    table = code_table(code)
    codes = np.zeros(len(x), np.uint8)
    absmax = np.zeros(-(-len(x) // block), f32)
    for b in range(len(absmax)):
        s = x[b * block : (b + 1) * block]
        absmax[b] = np.abs(s).max()
        if absmax[b] == 0:
            continue  # codes stay 0
        v = np.clip((s * (f32(1) / absmax[b])).astype(f32), f32(-1), f32(1))
        h = (v + f32(1)) * f32(0.5)
        codes[b * block : b * block + len(s)] = table[((h * f32(65535)).astype(f32) + f32(0.5)).astype(np.int64)]
    return codes, absmax


def quantize_absmax(absmax, code):
    """The second level: codes uint8, fp32 maxima per 256, and the fp32 offset."""
    offset = mean(absmax)
    codes, nested = quantize_8bit((absmax - offset).astype(f32), code)
    return codes, nested, offset


def dequantize_absmax(codes, nested, offset, code, block=256):
    return (code[codes] * np.repeat(nested, block)[: len(codes)]).astype(f32) + f32(offset)  # two roundings, never fused


def dequantize_nf4(packed, absmax, n, block=64):
    q = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:n]
    return (NF4[q] * np.repeat(absmax, block)[:n]).astype(f32)
