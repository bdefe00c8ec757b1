/* Runs the threads of a launch: one block after another, a block's threads as fibres that hand over to each other directly.
 *
 * A thread that never synchronises never switches: the fibre that finishes a thread goes on with the next that has not begun, so plain
 * element-wise kernels are loops. A thread that waits hands over to any thread that is ready (or has not begun, on a fresh fibre). When
 * nobody is ready and not all have returned, the kernel is stuck: that is how missing lanes and divergent barriers are found, and the
 * report says who waits where.
 *
 * A warp operation is done by the last lane to come, in the memory of all: each lane leaves a pointer to its own operands and results, so
 * one wait suffices. Rejected: one host thread per GPU thread (slow, and the order cannot be chosen), and running lanes in lockstep by
 * rewriting kernels as loops (another language than the one under test). */
#include "tests/cuda_emu/emu.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <mutex>
#include <vector>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/control.h"
#include "tests/cuda_emu/fibre.h"
#include "tests/cuda_emu/groups.h"
#include "tests/cuda_emu/guard.h"

lk_emu_indices lk_emu_here;

enum { MOST_THREADS = 1024, LANES = 32, ARENA = 2 * LK_EMU_SHARED_MOST };

enum waiting { READY, AT_BARRIER, AT_WARP, RETURNED };

/* What the tensor cores may read of a chunk of 16 bytes: copies have to be shown by their thread, and a barrier passed. */
enum seen : unsigned char { SEEN, COPIED, SHOWN };

struct copy {
    void *to;
    const void *from;
    bool valid;
    int group;
};

struct gpu_thread {
    uint3 index;
    lk_fibre *fibre; /* NULL until it begins */
    waiting state;
    int group; /* of asynchronous copies, the one being filled */
    std::vector<copy> copies;
    std::vector<size_t> arrived; /* chunks, not shown to the tensor cores */
};

/* Of the lanes of a warp, or of a warp group. */
template <int N> struct meeting {
    int arrived;
    const char *what, *file;
    int line;
    lk_emu_combine *combine;
    void *lanes[N];
};

struct shared_array {
    const char *name;
    unsigned char *memory;
    size_t bytes;
};

struct allowance {
    const void *kernel;
    size_t bytes;
};

static struct emulator {
    std::mutex busy; /* held by a launch */
    /* the device */
    const lk_emu_model *model;
    bool other_sums;
    /* the order */
    bool seeded;
    uint64_t seed, random, launches;
    /* the launch */
    lk_emu_launch_shape shape;
    lk_emu_body *body;
    void *arguments;
    int n_threads;
    gpu_thread threads[MOST_THREADS];
    meeting<LANES> warps[MOST_THREADS / LANES];
    meeting<LK_EMU_GROUP> groups[MOST_THREADS / LK_EMU_GROUP];
    /* the block */
    uint64_t block; /* counts all blocks ever run */
    int ready[MOST_THREADS], n_ready, returned, current;
    int at_barrier, barrier_line;
    const char *barrier_file;
    unsigned char *arena;
    size_t arena_used, shared_bytes;
    std::vector<shared_array> arrays;
    void *dynamic;
    seen chunks[ARENA / 16];
    std::vector<size_t> shown; /* since the last barrier */
    bool copied;               /* some chunk is not SEEN */
    /* fibres */
    lk_fibre *home;
    std::vector<lk_fibre *> fibres, idle;
    /* what went wrong */
    bool failed;
    char failure[900];
    char last[100];
    std::vector<allowance> allowed;
    ~emulator();
} emu;

/* ---- failures */

static void note_failure(const char *format, va_list args)
{
    if (emu.failed) return; /* the first is the cause */
    vsnprintf(emu.failure, sizeof emu.failure, format, args);
    emu.failed = true;
}

__attribute__((format(printf, 1, 2))) static void fail_launch(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    note_failure(format, args);
    va_end(args);
}

/* From inside a kernel: the launch ends here, its threads are left where they are. */
__attribute__((format(printf, 1, 2), noreturn)) static void fail_kernel(const char *format, ...)
{
    char text[sizeof emu.failure];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const uint3 *b = &lk_emu_here.block, *t = &lk_emu_here.thread;
    fail_launch("kernel %s, block (%u,%u,%u), thread (%u,%u,%u): %s", emu.shape.what, b->x, b->y, b->z, t->x, t->y, t->z, text);
    lk_fibre_switch(emu.threads[emu.current].fibre, emu.home);
    abort(); /* nobody comes back to it */
}

bool lk_emu_take_failure(char *text, size_t size)
{
    std::lock_guard<std::mutex> lock(emu.busy);
    if (!emu.failed) return false;
    snprintf(text, size, "%s", emu.failure);
    emu.failed = false;
    return true;
}

const char *lk_emu_last_kernel(void) { return emu.last[0] ? emu.last : "none"; }

/* ---- orders */

static uint64_t next_random(void)
{
    emu.random ^= emu.random << 13;
    emu.random ^= emu.random >> 7;
    emu.random ^= emu.random << 17;
    return emu.random;
}

static int random_below(int n) { return (int)((next_random() >> 32) * (uint64_t)n >> 32); }

void lk_emu_schedule(uint64_t seed)
{
    std::lock_guard<std::mutex> lock(emu.busy);
    emu.seed = seed;
    emu.seeded = true;
    emu.launches = 0;
}

static const lk_emu_model models[] = {
    {"sm_90", 9, 0, LK_EMU_SHARED_MOST, true}, {"sm_80", 8, 0, 163 * 1024, false}, {"sm_86", 8, 6, 99 * 1024, false}};

static const lk_emu_model *model_named(const char *name)
{
    for (const lk_emu_model &m : models)
        if (strcmp(m.name, name) == 0) return &m;
    return NULL;
}

bool lk_emu_set_device(const char *name)
{
    const lk_emu_model *m = model_named(name);
    if (m) emu.model = m;
    return m != NULL;
}

const lk_emu_model *lk_emu_device_model(void)
{
    if (!emu.model) {
        const char *text = getenv("LK_EMU_DEVICE");
        const lk_emu_model *m = text ? model_named(text) : NULL;
        emu.model = m ? m : models;
    }
    return emu.model;
}

void lk_emu_set_other_sums(bool other) { emu.other_sums = other; }
bool lk_emu_other_sums(void) { return emu.other_sums; }

static void begin_order(void)
{
    if (!emu.seeded) {
        const char *text = getenv("LK_EMU_SEED");
        emu.seed = text ? strtoull(text, NULL, 10) : 0;
        emu.seeded = true;
    }
    emu.random = (emu.seed + 1) * 0x9e3779b97f4a7c15u ^ (++emu.launches * 0xbf58476d1ce4e5b9u);
    if (!emu.random) emu.random = 1;
}

/* ---- handing over */

/* `n` threads from `first` on become ready: taken from the end of the list in ascending order, or shuffled. */
static void make_ready(int first, int n)
{
    int *list = emu.ready + emu.n_ready;
    for (int i = 0; i < n; i++) {
        list[i] = first + n - 1 - i;
        emu.threads[first + i].state = READY;
    }
    emu.n_ready += n;
    if (!emu.seed) return;
    for (int i = n - 1; i > 0; i--) {
        int j = random_below(i + 1), swap = list[i];
        list[i] = list[j];
        list[j] = swap;
    }
}

/* -1 when nobody is ready. */
static int pick(void)
{
    if (!emu.n_ready) return -1;
    int last = --emu.n_ready;
    if (emu.seed == 0 || emu.seed % 2 == 1) return emu.ready[last];
    int at = random_below(last + 1), thread = emu.ready[at];
    emu.ready[at] = emu.ready[last];
    return thread;
}

static void run_threads(void);

static lk_fibre *idle_fibre(void)
{
    if (emu.idle.empty()) {
        lk_fibre *f = lk_fibre_create(run_threads);
        if (!f) {
            fputs("cuda emulation: no memory for another stack\n", stderr);
            abort();
        }
        emu.fibres.push_back(f);
        return f;
    }
    lk_fibre *f = emu.idle.back();
    emu.idle.pop_back();
    return f;
}

static void enter(int thread)
{
    emu.current = thread;
    lk_emu_here.thread = emu.threads[thread].index;
}

__attribute__((noreturn)) static void report_stuck(void)
{
    char text[600];
    int at = snprintf(text, sizeof text, "stuck:");
    if (emu.at_barrier)
        at += snprintf(text + at, sizeof text - (size_t)at, " %d of %d threads wait at the block barrier of %s:%d;", emu.at_barrier,
                       emu.n_threads, emu.barrier_file, emu.barrier_line);
    for (int w = 0, said = 0; w < (emu.n_threads + LANES - 1) / LANES; w++) {
        const meeting<LANES> *warp = &emu.warps[w];
        if (!warp->arrived) continue;
        if (++said > 2) {
            at += snprintf(text + at, sizeof text - (size_t)at, " and more warps;");
            break;
        }
        unsigned missing = 0;
        for (int l = 0; l < LANES; l++) missing |= (unsigned)!warp->lanes[l] << l;
        at += snprintf(text + at, sizeof text - (size_t)at, " lanes missing from %s of warp %d at %s:%d: mask 0x%08x;", warp->what, w,
                       warp->file, warp->line, missing);
    }
    for (int g = 0; g < (emu.n_threads + LK_EMU_GROUP - 1) / LK_EMU_GROUP; g++) {
        const meeting<LK_EMU_GROUP> *group = &emu.groups[g];
        if (group->arrived)
            at += snprintf(text + at, sizeof text - (size_t)at, " %d of 128 lanes of warp group %d are at %s of %s:%d;", group->arrived, g,
                           group->what, group->file, group->line);
    }
    snprintf(text + at, sizeof text - (size_t)at, " %d of %d threads have returned", emu.returned, emu.n_threads);
    fail_kernel("%s", text);
}

/* The running thread waits; comes back when somebody made it ready and its turn has come. */
static void wait_for_turn(void)
{
    int me = emu.current, next = pick();
    if (next == me) return;
    if (next < 0) report_stuck();
    if (!emu.threads[next].fibre) emu.threads[next].fibre = idle_fibre();
    enter(next);
    lk_fibre_switch(emu.threads[me].fibre, emu.threads[next].fibre);
}

/* What every fibre does: the thread it was switched to, then whichever comes. */
static void run_threads(void)
{
    for (;;) {
        emu.body(emu.arguments);
        gpu_thread *done = &emu.threads[emu.current];
        lk_fibre *mine = done->fibre;
        done->state = RETURNED;
        emu.returned++;
        int next = pick();
        if (next < 0 && emu.returned < emu.n_threads) report_stuck();
        if (next >= 0 && !emu.threads[next].fibre) { /* begins on this stack */
            emu.threads[next].fibre = mine;
            enter(next);
            continue;
        }
        emu.idle.push_back(mine);
        lk_fibre *to = emu.home;
        if (next >= 0) {
            to = emu.threads[next].fibre;
            enter(next);
        }
        lk_fibre_switch(mine, to);
    }
}

/* ---- synchronisation */

static bool same_place(const char *file, int line, const char *other, int other_line)
{
    return line == other_line && (file == other || strcmp(file, other) == 0);
}

void lk_emu_barrier(const char *file, int line)
{
    if (!emu.at_barrier) {
        emu.barrier_file = file;
        emu.barrier_line = line;
    } else if (!same_place(file, line, emu.barrier_file, emu.barrier_line)) {
        fail_kernel("divergent barriers: this thread waits at %s:%d, others of the block at %s:%d", file, line, emu.barrier_file,
                    emu.barrier_line);
    }
    emu.threads[emu.current].state = AT_BARRIER;
    if (++emu.at_barrier == emu.n_threads) {
        emu.at_barrier = 0;
        for (size_t chunk : emu.shown)
            if (emu.chunks[chunk] == SHOWN) emu.chunks[chunk] = SEEN;
        emu.shown.clear();
        make_ready(0, emu.n_threads);
    }
    wait_for_turn();
}

/* `first` is the thread that is lane 0. */
template <int N>
static void meet(meeting<N> *m, int first, const char *what, lk_emu_combine *combine, void *mine, const char *file, int line)
{
    if (!m->arrived) {
        m->what = what;
        m->combine = combine;
        m->file = file;
        m->line = line;
    } else if (m->combine != combine || !same_place(file, line, m->file, m->line)) {
        fail_kernel("divergent warp: this lane is at %s of %s:%d, others at %s of %s:%d", what, file, line, m->what, m->file, m->line);
    }
    m->lanes[emu.current - first] = mine ? mine : m; /* not NULL: present */
    emu.threads[emu.current].state = AT_WARP;
    if (++m->arrived == N) {
        combine(m->lanes);
        m->arrived = 0;
        memset(m->lanes, 0, sizeof m->lanes);
        make_ready(first, N);
    }
    wait_for_turn();
}

void lk_emu_warp(const char *what, lk_emu_combine *combine, void *mine, const char *file, int line)
{
    int w = emu.current / LANES;
    meet(&emu.warps[w], w * LANES, what, combine, mine, file, line);
}

void lk_emu_group(const char *what, lk_emu_combine *combine, void *mine, const char *file, int line)
{
    int g = emu.current / LK_EMU_GROUP;
    meet(&emu.groups[g], g * LK_EMU_GROUP, what, combine, mine, file, line);
}

int lk_emu_thread(void) { return emu.current; }

bool lk_emu_toss(void) { return emu.seed && next_random() >> 63; }

void lk_emu_fail(const char *format, ...)
{
    char text[500];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fail_kernel("%s", text);
}

/* ---- shared memory */

static size_t allowed_shared(const void *kernel)
{
    for (const allowance &a : emu.allowed)
        if (a.kernel == kernel) return a.bytes;
    return LK_EMU_SHARED_DEFAULT;
}

void lk_emu_allow_shared(const void *kernel, size_t bytes)
{
    std::lock_guard<std::mutex> lock(emu.busy);
    for (allowance &a : emu.allowed)
        if (a.kernel == kernel) {
            a.bytes = bytes;
            return;
        }
    emu.allowed.push_back({kernel, bytes});
}

/* What lies before the first array, which is the dynamic one: it begins at a multiple of 1024 bytes, as LK_SHARED_ROWS promises. */
enum { FRONT = 1024 };
static_assert((int)FRONT >= (int)LK_EMU_GUARD, "a guard lies there");

/* Between guards, poisoned. The arena has room for twice what a launch may have, so guards fit as long as arrays are few. */
static void *take_shared(size_t bytes, const char *name)
{
    size_t rounded = (bytes + 127) / 128 * 128;
    if (emu.arena_used + rounded + LK_EMU_GUARD > ARENA) return NULL;
    unsigned char *p = emu.arena + emu.arena_used;
    lk_guard_lift(p, bytes);
    memset(p, LK_EMU_POISON, bytes);
    lk_guard_set(p + bytes, rounded - bytes + LK_EMU_GUARD);
    emu.arena_used += rounded + LK_EMU_GUARD;
    emu.shared_bytes += bytes;
    emu.arrays.push_back({name, p, bytes});
    return p;
}

void *lk_emu_shared(lk_emu_shared_site *site, size_t bytes, const char *name)
{
    if (site->block == emu.block) return site->memory;
    site->memory = take_shared(bytes, name);
    site->block = emu.block;
    size_t most = emu.shape.shared > LK_EMU_SHARED_DEFAULT ? (size_t)LK_EMU_SHARED_MOST : (size_t)LK_EMU_SHARED_DEFAULT;
    if (!site->memory || emu.shared_bytes > most)
        fail_kernel("shared array %s brings the block to %zu bytes of shared memory; %zu are there", name, emu.shared_bytes, most);
    return site->memory;
}

void *lk_emu_shared_dynamic(void) { return emu.dynamic; }

/* The pointer lies in an array of this block, with this many bytes. */
static bool is_shared(const void *p, size_t bytes)
{
    for (const shared_array &a : emu.arrays)
        if ((const unsigned char *)p >= a.memory && (const unsigned char *)p + bytes <= a.memory + a.bytes) return true;
    return false;
}

static bool begin_shared(void)
{
    if (!emu.arena) {
        void *p = NULL;
        if (posix_memalign(&p, 1024, ARENA + LK_EMU_GUARD)) return false;
        emu.arena = (unsigned char *)p;
    } else {
        lk_guard_lift(emu.arena, emu.arena_used); /* of the block before */
    }
    emu.arrays.clear();
    if (emu.copied) memset(emu.chunks, SEEN, sizeof emu.chunks);
    emu.copied = false;
    emu.shown.clear();
    emu.arena_used = FRONT;
    emu.shared_bytes = 0;
    lk_guard_set(emu.arena, FRONT);
    emu.dynamic = take_shared(emu.shape.shared, "dynamic shared memory");
    return emu.dynamic != NULL;
}

/* Each array's own end, and the guard before the first. */
static void check_shared(void)
{
    unsigned char *before = emu.arena;
    for (const shared_array &a : emu.arrays) {
        unsigned char *after = a.memory + a.bytes;
        size_t n = (128 - a.bytes % 128) % 128 + LK_EMU_GUARD, at = lk_guard_damage(after, n);
        const uint3 *b = &lk_emu_here.block;
        if (at < n)
            fail_launch("kernel %s, block (%u,%u,%u): a write %zu bytes past the end of shared array %s (%zu bytes)", emu.shape.what, b->x,
                        b->y, b->z, at, a.name, a.bytes);
        else if (a.memory == emu.arena + FRONT && lk_guard_damage(before, FRONT) < FRONT)
            fail_launch("kernel %s, block (%u,%u,%u): a write before the beginning of shared array %s", emu.shape.what, b->x, b->y, b->z,
                        a.name);
    }
}

/* ---- asynchronous copies */

static size_t chunk_of(const void *shared) { return (size_t)((const unsigned char *)shared - emu.arena) / 16; }

static void land(gpu_thread *t, const copy *c)
{
    if (c->valid)
        memcpy(c->to, c->from, 16);
    else
        memset(c->to, 0, 16);
    t->arrived.push_back(chunk_of(c->to));
}

void lk_emu_async_copy16(void *shared, const void *global, bool valid, const char *file, int line)
{
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16))
        fail_kernel("lk_async_copy16 of %s:%d wants 16-byte alignment: shared %p, global %p", file, line, shared, global);
    if (!is_shared(shared, 16)) fail_kernel("lk_async_copy16 of %s:%d: the destination is not inside a shared array", file, line);
    gpu_thread *t = &emu.threads[emu.current];
    memset(shared, LK_EMU_POISON, 16);
    emu.chunks[chunk_of(shared)] = COPIED;
    emu.copied = true;
    copy c = {shared, global, valid, t->group};
    if (lk_emu_toss())
        land(t, &c);
    else
        t->copies.push_back(c);
}

void lk_emu_async_commit(void) { emu.threads[emu.current].group++; }

void lk_emu_async_wait(int still_under_way)
{
    gpu_thread *t = &emu.threads[emu.current];
    size_t kept = 0;
    for (const copy &c : t->copies) {
        if (c.group < t->group - still_under_way)
            land(t, &c);
        else
            t->copies[kept++] = c;
    }
    t->copies.resize(kept);
}

void lk_emu_proxy_fence(void)
{
    gpu_thread *t = &emu.threads[emu.current];
    for (size_t chunk : t->arrived) {
        emu.chunks[chunk] = SHOWN;
        emu.shown.push_back(chunk);
    }
    t->arrived.clear();
}

bool lk_emu_chunk_unseen(size_t offset) { return emu.chunks[offset / 16] != SEEN; }

size_t lk_emu_shared_offset(const void *p, size_t bytes, const char *what)
{
    if (!is_shared(p, bytes)) fail_kernel("%s: %p is not inside a shared array", what, p);
    return (size_t)((const unsigned char *)p - emu.arena);
}

const void *lk_emu_shared_chunk(size_t offset)
{
    const unsigned char *p = emu.arena + offset;
    return is_shared(p, 16) ? p : NULL;
}

/* ---- tensor cores (PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and ldmatrix) */

struct mma_operands {
    float *d;
    const uint32_t *a, *b;
};

static float half_of(uint32_t pair, int high) { return lk_as_float(high ? pair & 0xffff0000u : pair << 16); }

/* Lane 4g+t holds a[g][2t], a[g+8][2t], a[g][2t+8], a[g+8][2t+8], b[2t][g], b[2t+8][g], each with its neighbour in k; d[g][2t], d[g+8][2t].
 */
static void multiply(void *const lanes[32])
{
    float a[16][16], b[16][8], d[16][8] = {};
    for (int l = 0; l < LANES; l++) {
        const mma_operands *o = (const mma_operands *)lanes[l];
        int g = l / 4, t = l % 4;
        for (int h = 0; h < 2; h++) {
            a[g][2 * t + h] = half_of(o->a[0], h);
            a[g + 8][2 * t + h] = half_of(o->a[1], h);
            a[g][2 * t + 8 + h] = half_of(o->a[2], h);
            a[g + 8][2 * t + 8 + h] = half_of(o->a[3], h);
            b[2 * t + h][g] = half_of(o->b[0], h);
            b[2 * t + 8 + h][g] = half_of(o->b[1], h);
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < LANES; l++) {
        float *out = ((const mma_operands *)lanes[l])->d;
        int g = l / 4, t = l % 4;
        for (int h = 0; h < 2; h++) {
            out[h] += d[g][2 * t + h];
            out[2 + h] += d[g + 8][2 * t + h];
        }
    }
}

void lk_emu_mma(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file, int line)
{
    mma_operands mine = {d, a, b};
    lk_emu_warp("lk_mma_bf16", multiply, &mine, file, line);
}

struct matrix_rows {
    uint32_t *out;
    const void *row;
};

/* Tile i: lane l gets the pair at row l/4, columns 2(l%4); transposed, the pair at rows 2(l%4), column l/4. */
static void load_tiles(void *const lanes[32], bool transposed)
{
    for (int tile = 0; tile < 4; tile++) {
        uint16_t m[8][8];
        for (int r = 0; r < 8; r++) memcpy(m[r], ((const matrix_rows *)lanes[8 * tile + r])->row, 16);
        for (int l = 0; l < LANES; l++) {
            int g = l / 4, t = 2 * (l % 4);
            uint32_t low = transposed ? m[t][g] : m[g][t], high = transposed ? m[t + 1][g] : m[g][t + 1];
            ((const matrix_rows *)lanes[l])->out[tile] = low | high << 16;
        }
    }
}

void lk_emu_ldmatrix4(uint32_t out[4], const void *row, bool transposed, const char *file, int line)
{
    if ((uintptr_t)row % 16) fail_kernel("lk_ldmatrix4 of %s:%d wants 16-byte alignment: row at %p", file, line, row);
    if (!is_shared(row, 16)) fail_kernel("lk_ldmatrix4 of %s:%d: the row is not inside a shared array", file, line);
    matrix_rows mine = {out, row};
    if (transposed)
        lk_emu_warp(
            "lk_ldmatrix4_transposed", [](void *const lanes[32]) { load_tiles(lanes, true); }, &mine, file, line);
    else
        lk_emu_warp(
            "lk_ldmatrix4", [](void *const lanes[32]) { load_tiles(lanes, false); }, &mine, file, line);
}

/* ---- launches */

static void run_block(uint3 block)
{
    emu.block++;
    lk_emu_here.block = block;
    if (!begin_shared()) {
        fail_launch("kernel %s: no memory for its shared arrays", emu.shape.what);
        return;
    }
    for (int t = 0; t < emu.n_threads; t++) {
        gpu_thread *thread = &emu.threads[t];
        thread->fibre = NULL;
        thread->group = 0;
        if (!thread->copies.empty()) thread->copies.clear();
        if (!thread->arrived.empty()) thread->arrived.clear();
    }
    lk_emu_groups_begin();
    emu.n_ready = emu.returned = emu.at_barrier = 0;
    make_ready(0, emu.n_threads);
    int first = pick();
    emu.threads[first].fibre = idle_fibre();
    enter(first);
    lk_fibre_switch(emu.home, emu.threads[first].fibre);
    if (emu.failed) { /* threads were left in the middle */
        for (lk_fibre *f : emu.fibres) lk_fibre_renew(f);
        emu.idle = emu.fibres;
        memset(emu.warps, 0, sizeof emu.warps);
        memset(emu.groups, 0, sizeof emu.groups);
        return;
    }
    check_shared();
    if (!lk_emu_groups_end()) fail_launch("kernel %s: it ended before products of a warp group that nothing waited for", emu.shape.what);
}

static bool fits(const lk_emu_launch_shape *s)
{
    const dim3 *g = &s->grid, *b = &s->block;
    uint64_t threads = (uint64_t)b->x * b->y * b->z;
    if (threads == 0 || threads > MOST_THREADS || b->z > 64)
        fail_launch("kernel %s: a block of (%u,%u,%u) threads; a GPU takes 1 to %d", s->what, b->x, b->y, b->z, MOST_THREADS);
    else if (!g->x || !g->y || !g->z || g->x > 0x7fffffffu || g->y > 65535 || g->z > 65535)
        fail_launch("kernel %s: a grid of (%u,%u,%u) blocks; a GPU takes 1 to (2^31-1, 65535, 65535)", s->what, g->x, g->y, g->z);
    else if (s->shared > allowed_shared(s->kernel) || s->shared > lk_emu_device_model()->shared)
        fail_launch("kernel %s: %zu bytes of dynamic shared memory; %zu are allowed (lk_rt_allow_shared)", s->what, s->shared,
                    allowed_shared(s->kernel));
    else
        return true;
    return false;
}

void lk_emu_check_argument(const char *what, int argument, const void *p)
{
    if (!p || lk_emu_is_device(p)) return;
    std::lock_guard<std::mutex> lock(emu.busy);
    fail_launch("kernel %s: argument %d points to %p, which is not memory of the device", what, argument, p);
}

bool lk_emu_launch_fits(const lk_emu_launch_shape *shape)
{
    std::lock_guard<std::mutex> lock(emu.busy);
    return !emu.failed && fits(shape);
}

void lk_emu_launch(const lk_emu_launch_shape *shape, lk_emu_body *body, void *arguments)
{
    std::lock_guard<std::mutex> lock(emu.busy);
    lk_emu_count(&lk_emu_counts::kernels, 1);
    snprintf(emu.last, sizeof emu.last, "%s", shape->what);
    if (emu.failed || !fits(shape)) return; /* as on a GPU: nothing runs after a failure until it is reported */
    if (!emu.home) emu.home = lk_fibre_create_home();
    begin_order();
    emu.shape = *shape;
    emu.body = body;
    emu.arguments = arguments;
    lk_emu_here.block_dim = shape->block;
    lk_emu_here.grid_dim = shape->grid;
    emu.n_threads = (int)(shape->block.x * shape->block.y * shape->block.z);
    for (int t = 0; t < emu.n_threads; t++) {
        unsigned u = (unsigned)t, x = shape->block.x, y = shape->block.y;
        emu.threads[t].index = {u % x, u / x % y, u / (x * y)};
    }
    std::vector<uint64_t> order((size_t)shape->grid.x * shape->grid.y * shape->grid.z);
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    for (size_t i = order.size(); emu.seed && i > 1; i--) std::swap(order[i - 1], order[next_random() % i]);
    for (size_t i = 0; i < order.size() && !emu.failed; i++) {
        uint64_t at = order[i], x = shape->grid.x, y = shape->grid.y;
        run_block({(unsigned)(at % x), (unsigned)(at / x % y), (unsigned)(at / (x * y))});
    }
}

emulator::~emulator()
{
    for (lk_fibre *f : fibres) lk_fibre_destroy(f);
    lk_fibre_destroy(home);
    if (arena) lk_guard_lift(arena, ARENA + LK_EMU_GUARD);
    free(arena);
}
