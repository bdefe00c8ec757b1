/* Where top-k and top-p cut a row's order, without sorting it (sample.cu has the whole).
 *
 * The tally, made by many blocks, says how many logits and how much mass lie in each step of 1/16 below the top; so it says in which step
 * the running number or mass reaches what is wanted. One block gathers the logits of that step, some dozens mostly, and ranks each against
 * all: the one whose rank is wanted is the last that survives. A step of more than MOST_RANKED is halved by key first, as often as it
 * takes: a pass over the row each, 3 us; thousands of nearly equal logits take five, a row of nothing but equal ones some twenty. */
#ifndef LK_KERNELS_CUDA_SAMPLE_CUTS_H
#define LK_KERNELS_CUDA_SAMPLE_CUTS_H

#include "kernels/cuda/sample_rows.h"

LK_KERNEL void sample_tally(sample_args a, const int32_t *rows)
{
    LK_SHARED(wide, part, 32);
    LK_SHARED(wide, masses, STEPS);
    LK_SHARED(unsigned, counts, STEPS);
    int32_t r = rows[blockIdx.y], piece = (int32_t)blockIdx.x;
    float x[EACH];
    load(x, a, row_of(a, r), piece * PIECE);
    for (int s = (int)threadIdx.x; s < STEPS; s += THREADS) {
        masses[s] = 0;
        counts[s] = 0;
    }
    scale scaled = {key_value(top_key(a, piece_keys(a, r, false), part)), a.rows[r].temperature};
    LK_UNROLL
    for (int i = 0; i < EACH; i++) {
        if (!key_of(x[i], 0)) continue;
        int step = step_of(scaled, x[i]);
        atomicAdd(&masses[step], mass_of(chance(scaled, x[i])));
        atomicAdd(&counts[step], 1u);
    }
    lk_block_sync();
    for (int s = (int)threadIdx.x; s < STEPS; s += THREADS) {
        if (!counts[s]) continue;
        atomicAdd(&a.tally_mass[(int64_t)r * STEPS + s], masses[s]);
        atomicAdd(&a.tally_count[(int64_t)r * STEPS + s], (wide)counts[s]);
    }
}

typedef struct weight {
    wide count, mass;
} weight;

/* The part of a row's order in which a cut lies: keys lo..hi of one step, and what comes before them. */
typedef struct range {
    int step;
    wide lo, hi, count;
    weight before;
} range;

typedef struct selection {
    const float *row;
    scale scaled;
    weight own;          /* of the step that is this thread's number */
    wide *part;          /* shared memory for 32 */
    wide *told;          /* for 4 */
    wide *keys, *masses; /* for MOST_RANKED */
    int32_t *slot;
} selection;

LK_DEVICE wide key_in(const range &g, const selection &s, float x, int32_t id)
{
    wide key = key_of(x, id);
    return key && step_of(s.scaled, x) == g.step && key >= g.lo && key <= g.hi ? key : 0;
}

/* Where the running count (or mass) reaches `wanted`. */
LK_DEVICE range find_step(const selection &s, wide wanted, bool by_mass)
{
    wide all, count = block_before(s.own.count, s.part, &all), mass = block_before(s.own.mass, s.part, &all);
    wide before = by_mass ? mass : count, mine = by_mass ? s.own.mass : s.own.count;
    if (before < wanted && wanted <= before + mine) {
        s.told[0] = threadIdx.x;
        s.told[1] = s.own.count;
        s.told[2] = count;
        s.told[3] = mass;
    }
    lk_block_sync();
    range g = {(int)s.told[0], 0, ~(wide)0, s.told[1], {s.told[2], s.told[3]}};
    lk_block_sync();
    return g;
}

/* The least and the largest key of the range become its ends. */
LK_DEVICE void tighten(const sample_args &a, const selection &s, range *g)
{
    wide most = 0, least = 0; /* the complement of the least */
    for (int32_t first = 0; first < a.vocab; first += STEPS * EACH) {
        float x[EACH];
        load(x, a, s.row, first);
        LK_UNROLL
        for (int i = 0; i < EACH; i++) {
            wide key = key_in(*g, s, x[i], place(first, i));
            if (!key) continue;
            most = larger(most, key);
            least = larger(least, ~key);
        }
    }
    g->hi = block_max(most, s.part);
    g->lo = ~block_max(least, s.part);
}

/* Keeps the half of the range that the cut is in. */
LK_DEVICE void halve(const sample_args &a, const selection &s, range *g, wide wanted, bool by_mass)
{
    range upper = *g;
    weight w = {0, 0};
    upper.lo = g->lo + (g->hi - g->lo) / 2 + 1;
    for (int32_t first = 0; first < a.vocab; first += STEPS * EACH) {
        float x[EACH];
        load(x, a, s.row, first);
        LK_UNROLL
        for (int i = 0; i < EACH; i++) {
            if (!key_in(upper, s, x[i], place(first, i))) continue;
            w.count++;
            w.mass += mass_of(chance(s.scaled, x[i]));
        }
    }
    w.count = block_total(w.count, s.part);
    w.mass = block_total(w.mass, s.part);
    if ((by_mass ? g->before.mass + w.mass : g->before.count + w.count) >= wanted) {
        g->lo = upper.lo;
        g->count = w.count;
        return;
    }
    g->hi = upper.lo - 1;
    g->count -= w.count;
    g->before.count += w.count;
    g->before.mass += w.mass;
}

LK_DEVICE void gather(const sample_args &a, const selection &s, const range &g)
{
    if (threadIdx.x == 0) s.slot[0] = 0;
    lk_block_sync();
    for (int32_t first = 0; first < a.vocab; first += STEPS * EACH) {
        float x[EACH];
        load(x, a, s.row, first);
        LK_UNROLL
        for (int i = 0; i < EACH; i++) {
            wide key = key_in(g, s, x[i], place(first, i));
            if (!key) continue;
            int at = atomicAdd(s.slot, 1); /* in any order: each is ranked against all */
            s.keys[at] = key;
            s.masses[at] = mass_of(chance(s.scaled, x[i]));
        }
    }
    lk_block_sync();
}

/* The last key that survives, and the mass up to and with it. */
LK_DEVICE wide find_cut(const sample_args &a, const selection &s, wide wanted, bool by_mass, wide *mass)
{
    range g = find_step(s, wanted, by_mass);
    if (g.count > MOST_RANKED) tighten(a, s, &g);
    while (g.count > MOST_RANKED) halve(a, s, &g, wanted, by_mass);
    gather(a, s, g);
    int thread = (int)threadIdx.x;
    if (thread < (int)g.count) {
        weight before = g.before;
        wide mine = s.keys[thread], own = s.masses[thread];
        for (int i = 0; i < (int)g.count; i++) {
            if (s.keys[i] <= mine) continue;
            before.count++;
            before.mass += s.masses[i];
        }
        if (by_mass ? before.mass < wanted && wanted <= before.mass + own : before.count + 1 == wanted) {
            s.told[0] = mine;
            s.told[1] = before.mass + own;
        }
    }
    lk_block_sync();
    wide key = s.told[0];
    *mass = s.told[1];
    lk_block_sync();
    return key;
}

LK_KERNEL void sample_select(sample_args a, const int32_t *rows)
{
    LK_SHARED(wide, part, 32);
    LK_SHARED(wide, told, 4);
    LK_SHARED(wide, keys, MOST_RANKED);
    LK_SHARED(wide, masses, MOST_RANKED);
    LK_SHARED(int32_t, slot, 1);
    int32_t r = rows[blockIdx.x];
    const lk_cuda_sample_row q = a.rows[r];
    int64_t step = (int64_t)r * STEPS + threadIdx.x;
    selection s = {row_of(a, r), {0.0f, q.temperature}, {a.tally_count[step], a.tally_mass[step]}, part, told, keys, masses, slot};
    s.scaled.top = key_value(top_key(a, piece_keys(a, r, false), part));
    wide count = block_total(s.own.count, part), mass = block_total(s.own.mass, part), cut = 0;
    if (q.top_k > 0 && (wide)q.top_k < count) cut = find_cut(a, s, (wide)q.top_k, false, &mass);
    if (q.top_p < 1.0f && mass > 0) {
        wide wanted = (wide)ceil((double)q.top_p * (double)mass), ignored;
        if (wanted < 1) wanted = 1;
        if (wanted > mass) wanted = mass;
        cut = larger(cut, find_cut(a, s, wanted, true, &ignored));
    }
    if (threadIdx.x == 0) a.cuts[r] = cut;
}

#endif
