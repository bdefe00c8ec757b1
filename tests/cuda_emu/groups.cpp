/* Products of warp groups on the host: groups.h says what is modelled. */
#include "tests/cuda_emu/groups.h"

#include <string.h>

#include <deque>

#include "tests/cuda_emu/control.h"
#include "tests/cuda_emu/guard.h"

enum { GROUPS = 1024 / LK_EMU_GROUP, COLUMNS = 64, STEP = 16, VALUES = 32, SWIZZLE_128 = 1 };

struct lane_part {
    float *d;
    const uint32_t *a;
    uint32_t kept[4];
    float start[VALUES], out[VALUES];
    bool collected;
};

struct product {
    uint64_t rows;
    bool add, done;
    int64_t group; /* of commits */
    int left;      /* lanes that have not collected it */
    lane_part lanes[LK_EMU_GROUP];
};

struct lane_state {
    bool fenced;
    int64_t committed;
};

static struct {
    std::deque<product> under_way[GROUPS];
    lane_state lanes[GROUPS * LK_EMU_GROUP];
} all;

void lk_emu_groups_begin(void)
{
    for (std::deque<product> &group : all.under_way) group.clear();
    memset(all.lanes, 0, sizeof all.lanes);
}

bool lk_emu_groups_end(void)
{
    for (const std::deque<product> &group : all.under_way)
        if (!group.empty()) return false;
    return true;
}

/* ---- the matrix in shared memory */

/* Bits 0-13 the address, 32-45 what lies between eight rows and the next eight, 49-51 the offset of the pattern, 62-63 its kind; addresses
 * and offsets in units of 16 bytes. */
uint64_t lk_emu_group_rows(const void *rows, const char *file, int line)
{
    size_t offset = lk_emu_shared_offset(rows, 16, "lk_group_rows");
    if (offset >= 1 << 18)
        lk_emu_fail("lk_group_rows of %s:%d: byte %zu of shared memory is beyond what a descriptor names", file, line, offset);
    return (uint64_t)offset >> 4 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)SWIZZLE_128 << 62;
}

/* Bits 7-9 of an address turn bits 4-6. */
static size_t chunk_at(uint64_t rows, int row, int half)
{
    size_t start = (size_t)(rows & 0x3fff) << 4, eight = (size_t)(rows >> 32 & 0x3fff) << 4;
    size_t linear = start + (size_t)(row / 8) * eight + (size_t)(row % 8) * 128 + (size_t)half * 16;
    return linear ^ (linear >> 7 & 7) << 4;
}

static void check_rows(uint64_t rows)
{
    if (rows >> 62 != SWIZZLE_128 || (rows >> 49 & 7)) lk_emu_fail("lk_group_mma: the emulation knows rows of 128 bytes alone");
    for (int i = 0; i < 2 * COLUMNS; i++) {
        size_t chunk = chunk_at(rows, i / 2, i % 2);
        if (!lk_emu_shared_chunk(chunk)) lk_emu_fail("lk_group_mma: row %d of b is not inside a shared array", i / 2);
        if (lk_emu_chunk_unseen(chunk))
            lk_emu_fail("lk_group_mma: row %d of b was copied by a thread that has not called lk_proxy_fence and passed a barrier since",
                        i / 2);
    }
}

/* ---- multiplying */

static float half_of(uint32_t pair, int high) { return lk_as_float(high ? pair & 0xffff0000u : pair << 16); }

/* As lk_emu_mma adds: the 16 products first, ascending, then what was there. */
static void multiply(product *p)
{
    float b[STEP][COLUMNS];
    for (int row = 0; row < COLUMNS; row++)
        for (int half = 0; half < 2; half++) {
            const uint16_t *from = (const uint16_t *)lk_emu_shared_chunk(chunk_at(p->rows, row, half));
            for (int k = 0; k < 8; k++) b[8 * half + k][row] = half_of(from[k], 0);
        }
    for (int warp = 0; warp < LK_EMU_GROUP / 32; warp++) {
        lane_part *lanes = p->lanes + 32 * warp;
        float a[16][STEP], d[16][COLUMNS] = {};
        for (int l = 0; l < 32; l++)
            for (int h = 0; h < 2; h++) {
                int g = l / 4, t = l % 4;
                a[g][2 * t + h] = half_of(lanes[l].kept[0], h);
                a[g + 8][2 * t + h] = half_of(lanes[l].kept[1], h);
                a[g][2 * t + 8 + h] = half_of(lanes[l].kept[2], h);
                a[g + 8][2 * t + 8 + h] = half_of(lanes[l].kept[3], h);
            }
        for (int i = 0; i < 16; i++)
            for (int step = 0; step < STEP; step++) {
                int k = lk_emu_other_sums() ? STEP - 1 - step : step;
                for (int j = 0; j < COLUMNS; j++) d[i][j] += a[i][k] * b[k][j];
            }
        for (int l = 0; l < 32; l++)
            for (int v = 0; v < VALUES; v++)
                lanes[l].out[v] = lanes[l].start[v] + d[l / 4 + 8 * (v / 2 % 2)][v / 4 * 8 + 2 * (l % 4) + v % 2];
    }
    p->done = true;
}

/* Products end in order; the next one on the same registers goes on from there. */
static void finish(std::deque<product> *group, size_t last)
{
    for (size_t i = 0; i <= last; i++) {
        product *p = &(*group)[i];
        if (p->done) continue;
        multiply(p);
        for (int l = 0; l < LK_EMU_GROUP; l++)
            for (size_t next = i + 1; next < group->size(); next++) {
                lane_part *after = &(*group)[next].lanes[l];
                if (after->d != p->lanes[l].d) continue;
                if ((*group)[next].add) memcpy(after->start, p->lanes[l].out, sizeof after->start);
                break;
            }
    }
}

struct brought {
    float *d;
    const uint32_t *a;
    uint64_t rows;
    bool add;
    int thread;
};

static void take_up(void *const lanes[])
{
    const brought *first = (const brought *)lanes[0];
    int group = first->thread / LK_EMU_GROUP;
    std::deque<product> *under_way = &all.under_way[group];
    check_rows(first->rows);
    under_way->emplace_back();
    product *p = &under_way->back();
    p->rows = first->rows;
    p->add = first->add;
    p->done = false;
    p->group = all.lanes[first->thread].committed;
    p->left = LK_EMU_GROUP;
    for (int l = 0; l < LK_EMU_GROUP; l++) {
        const brought *b = (const brought *)lanes[l];
        const lane_state *state = &all.lanes[b->thread];
        lane_part *part = &p->lanes[l];
        if (b->rows != p->rows || b->add != p->add || state->committed != p->group)
            lk_emu_fail("lk_group_mma: lane %d of the warp group brings another b, or has committed another number of groups", l);
        if (!state->fenced) lk_emu_fail("lk_group_mma: lane %d has not called lk_group_fence since it began or waited", l);
        part->d = b->d;
        part->a = b->a;
        part->collected = false;
        memcpy(part->kept, b->a, sizeof part->kept);
        memset(part->start, 0, sizeof part->start);
        if (p->add) memcpy(part->start, b->d, sizeof part->start);
        for (size_t i = under_way->size() - 1; p->add && i-- > 0;) { /* what is on its way to d, not the poison there */
            const product *before = &(*under_way)[i];
            if (before->lanes[l].d != part->d || before->lanes[l].collected) continue;
            if (before->done) memcpy(part->start, before->lanes[l].out, sizeof part->start);
            break;
        }
        memset(b->d, LK_EMU_POISON, VALUES * sizeof(float));
    }
    if (lk_emu_toss()) finish(under_way, under_way->size() - 1);
}

/* ---- what kernels call */

void lk_emu_group_fence(void) { all.lanes[lk_emu_thread()].fenced = true; }

void lk_emu_group_commit(void) { all.lanes[lk_emu_thread()].committed++; }

void lk_emu_group_mma(float *d, const uint32_t *a, uint64_t rows, bool add, const char *file, int line)
{
    if (!lk_emu_device_model()->groups) lk_emu_fail("lk_group_mma of %s:%d on %s, which has none", file, line, lk_emu_device_model()->name);
    brought mine = {d, a, rows, add, lk_emu_thread()};
    lk_emu_group("lk_group_mma", take_up, &mine, file, line);
}

void lk_emu_group_wait(int still_under_way, const char *file, int line)
{
    lk_emu_warp(
        "lk_group_wait", [](void *const *) {}, NULL, file, line);
    int thread = lk_emu_thread(), lane = thread % LK_EMU_GROUP;
    lane_state *state = &all.lanes[thread];
    std::deque<product> *group = &all.under_way[thread / LK_EMU_GROUP];
    state->fenced = false;
    for (size_t i = 0; i < group->size(); i++) {
        product *p = &(*group)[i];
        lane_part *part = &p->lanes[lane];
        if (p->group >= state->committed - still_under_way) break;
        if (part->collected) continue;
        if (!p->done) finish(group, i);
        if (memcmp(part->a, part->kept, sizeof part->kept) != 0)
            lk_emu_fail("lk_group_wait of %s:%d: registers of a changed while a product read them", file, line);
        bool goes_on = false;
        for (size_t next = i + 1; next < group->size(); next++) goes_on = goes_on || (*group)[next].lanes[lane].d == part->d;
        if (!goes_on) memcpy(part->d, part->out, sizeof part->out);
        part->collected = true;
        p->left--;
    }
    while (!group->empty() && group->front().left == 0) group->pop_front();
}
