/* Launching the products of product_kernels.h and product_groups.h: which shape, in how many pieces of K, and who may use how much shared
 * memory. None of this changes a bit. */
#ifndef LK_KERNELS_CUDA_PRODUCT_LAUNCH_H
#define LK_KERNELS_CUDA_PRODUCT_LAUNCH_H

#include "kernels/cuda/product_groups.h"

template <typename W> static constexpr size_t few_shared(void)
{
    return (size_t)(W::TABLE_BYTES + WARPS * RUN * SLOT_BYTES) + 2 * WARPS * OUTPUTS * sizeof(float);
}
/* A kernel that wants more shared memory than the device has (99 KiB on the smaller ones) is not used there: others do its work with the
 * same bits. */
enum { SHARED_SM86 = 99 << 10, SHARED_SM80 = 163 << 10, SHARED_SM90 = 227 << 10 };
static inline bool fits(lk_backend *be, size_t shared) { return shared <= lk_cuda_of(be)->device.shared_per_block; }
static inline lk_status allow(lk_backend *be, const void *kernel, size_t shared)
{
    return fits(be, shared) ? lk_rt_allow_shared(kernel, shared, &be->error) : LK_OK;
}

template <typename W> static lk_status allow_all(lk_backend *be)
{
    static_assert(small_tiles<W, 2>::BYTES <= SHARED_SM86 && small_tiles<W, 4>::BYTES <= SHARED_SM86, "somebody has to");
    static_assert(middle_tiles<W, 4>::BYTES <= SHARED_SM80 && middle_tiles<W, 8>::BYTES <= SHARED_SM80 &&
                      prompt_tiles<W>::BYTES <= SHARED_SM80,
                  "a data centre's device has all");
    LK_TRY(allow(be, (const void *)few_kernel<W>, few_shared<W>()));
    LK_TRY(allow(be, (const void *)tiles_kernel<W, 2>, small_tiles<W, 2>::BYTES));
    LK_TRY(allow(be, (const void *)tiles_kernel<W, 4>, small_tiles<W, 4>::BYTES));
    LK_TRY(allow(be, (const void *)middle_kernel<W, 4>, middle_tiles<W, 4>::BYTES));
    LK_TRY(allow(be, (const void *)middle_kernel<W, 8>, middle_tiles<W, 8>::BYTES));
    if constexpr (W::GROUPS) {
        static_assert(group_layout<W, 2>::BYTES <= SHARED_SM90, "one block a multiprocessor");
        if (lk_cuda_of(be)->warp_groups) {
            LK_TRY(allow(be, (const void *)group_kernel<W, 1>, group_layout<W, 1>::BYTES));
            LK_TRY(allow(be, (const void *)group_kernel<W, 2>, group_layout<W, 2>::BYTES));
        }
    }
    return allow(be, (const void *)prompt_kernel<W>, prompt_tiles<W>::BYTES);
}

static inline product product_of(const lk_cuda_product *c)
{
    product p = {};
    p.x = (const lk_bf16 *)c->x;
    p.ldx = c->ldx;
    p.tokens = (int32_t)c->tokens;
    p.n = (int32_t)c->w->base.n;
    p.depths = (int32_t)((c->w->base.k + DEPTH - 1) / DEPTH);
    p.piece = (int32_t)(lk_cuda_piece(c->w->base.k) / DEPTH);
    p.pieces = (p.depths + p.piece - 1) / p.piece;
    p.in_hand = p.pieces <= WARPS / 2 ? 2 : 1;
    p.chunks = (int32_t)(lk_cuda_padded(c->w->base.k) / 8);
    p.y = c->y;
    p.ldy = c->ldy;
    p.residual = c->residual;
    p.ldr = c->ldr;
    p.bias = c->bias;
    p.y_f32 = c->y_f32;
    return p;
}

template <typename L> static inline int64_t groups_of(const lk_cuda_product *c)
{
    return (c->w->base.n + L::GROUP * 16 - 1) / (L::GROUP * 16);
}

/* What products with one x cost in a shape, in cycles, and in how many pieces of K their blocks go: over all of K, or, for up to IN_PIECES
 * tokens whose sums have room in the scratch, a piece a block. The latter fills more multiprocessors and pays for it: sums are written and
 * read through L2, of which a multiprocessor moves 24 bytes a cycle, and the launch that joins them is some 3500 cycles. Computed for an
 * H200, not measured. */
typedef struct shape_cost {
    int64_t cycles, pieces;
} shape_cost;

template <typename L> static inline shape_cost cost_of(const lk_backend *be, const lk_cuda_product *c, int n)
{
    enum { L2_BYTES = 24, JOINING = 3500 };
    const product p = product_of(c);
    int64_t sms = ((const lk_cuda *)be)->device.sms, groups = 0, rows = 0;
    for (int i = 0; i < n; i++) {
        groups += groups_of<L>(&c[i]);
        rows += c[i].w->base.n;
    }
    int64_t blocks = groups * ((p.tokens + L::TOKENS - 1) / L::TOKENS), sums = p.pieces * rows * p.tokens * (int64_t)sizeof(float);
    shape_cost whole = {(blocks + sms - 1) / sms * p.depths * L::CYCLES, 1};
    if (p.pieces == 1 || p.tokens > IN_PIECES || (size_t)sums > c->partials_bytes) return whole;
    int64_t in_turn = (groups * p.pieces + sms - 1) / sms;
    shape_cost cut = {in_turn * p.piece * L::CYCLES + 2 * sums / (L2_BYTES * sms) + JOINING, p.pieces};
    return cut.cycles < whole.cycles ? cut : whole;
}

/* One launch of a shape over all parts, and one that joins pieces. */
template <typename W, typename L>
static lk_status run_shape(lk_backend *be, const char *name, void (*kernel)(tiles_args<W>), const W *w, const lk_cuda_product *c, int n)
{
    tiles_args<W> a = {};
    lk_cuda_product parts[LK_MOST_PARTS] = {c[0]}; /* n is at least 1 */
    for (int i = 0; i < n; i++) parts[i] = c[i];
    int64_t pieces = cost_of<L>(be, c, n).pieces;
    for (int i = 1; i < n; i++) parts[i].partials = parts[i - 1].partials + pieces * c->tokens * c[i - 1].w->base.n;
    dim3 grid(0, (unsigned)((c->tokens + L::TOKENS - 1) / L::TOKENS), (unsigned)pieces);
    for (int i = 0; i < n; i++) {
        a.w[i] = w[i];
        a.p[i] = product_of(&parts[i]);
        a.p[i].partials = pieces > 1 ? parts[i].partials : NULL;
        a.groups[i] = (int32_t)groups_of<L>(&parts[i]);
        grid.x += (unsigned)a.groups[i];
    }
    LK_LAUNCH(name, kernel, grid, dim3(THREADS), (size_t)L::BYTES, lk_cuda_of(be)->stream, a);
    LK_TRY(lk_rt_launched(name, &be->error));
    return pieces > 1 ? lk_cuda_product_join(be, parts, n, pieces) : LK_OK;
}

/* More than 8 tokens. */
template <typename W> static lk_status run_tiles(lk_backend *be, const W *w, const lk_cuda_product *c, int n)
{
    typedef small_tiles<W, 4> small;
    typedef middle_tiles<W, 4> middle;
    typedef middle_tiles<W, 8> large;
    typedef prompt_tiles<W> prompt;
    int64_t tokens = c->tokens;
    if constexpr (W::GROUPS) {
        typedef group_layout<W, 1> one;
        typedef group_layout<W, 2> two;
        if (tokens > large::TOKENS && lk_cuda_of(be)->warp_groups) {
            if (cost_of<one>(be, c, n).cycles < cost_of<two>(be, c, n).cycles)
                return run_shape<W, one>(be, W::prompt_name, group_kernel<W, 1>, w, c, n);
            return run_shape<W, two>(be, W::prompt_name, group_kernel<W, 2>, w, c, n);
        }
    }
    if (tokens <= small_tiles<W, 2>::TOKENS) return run_shape<W, small_tiles<W, 2>>(be, W::tiles_name, tiles_kernel<W, 2>, w, c, n);
    if (tokens <= middle::TOKENS && fits(be, middle::BYTES) && cost_of<middle>(be, c, n).cycles <= cost_of<small>(be, c, n).cycles)
        return run_shape<W, middle>(be, W::tiles_name, middle_kernel<W, 4>, w, c, n);
    if (tokens > middle::TOKENS && tokens <= large::TOKENS && fits(be, large::BYTES))
        return run_shape<W, large>(be, W::tiles_name, middle_kernel<W, 8>, w, c, n);
    if (tokens > large::TOKENS && fits(be, prompt::BYTES)) return run_shape<W, prompt>(be, W::prompt_name, prompt_kernel<W>, w, c, n);
    return run_shape<W, small>(be, W::tiles_name, tiles_kernel<W, 4>, w, c, n);
}

/* Every product its share of the blocks that fit at once, by its tiles. */
template <typename W> static lk_status run_few(lk_backend *be, const W *w, const lk_cuda_product *c, int n)
{
    lk_cuda *cu = lk_cuda_of(be);
    few_args<W> a = {};
    int64_t all = 0, most = 2 * (int64_t)cu->device.sms, rows = 16 * product_of(c).in_hand;
    dim3 grid(0);
    for (int i = 0; i < n; i++) all += (c[i].w->base.n + rows - 1) / rows;
    for (int i = 0; i < n; i++) {
        int64_t turns = (c[i].w->base.n + rows - 1) / rows, share = all > most ? turns * most / all : turns;
        a.w[i] = w[i];
        a.p[i] = product_of(&c[i]);
        a.blocks[i] = share > 1 ? (int32_t)share : 1;
        grid.x += (unsigned)a.blocks[i];
    }
    LK_LAUNCH(W::few_name, few_kernel<W>, grid, dim3(THREADS), few_shared<W>(), cu->stream, a);
    return lk_rt_launched(W::few_name, &be->error);
}

/* Products with one x. */
template <typename W> static lk_status run_products(lk_backend *be, const W *w, const lk_cuda_product *c, int n)
{
    for (int i = 0; i < n; i++)
        if (c[i].w->base.n >= INT32_MAX / 2 || c[i].w->base.k >= INT32_MAX / 2 || c[i].tokens >= 65535 * 32)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "linear: %lld rows of a matrix of %lld x %lld are more than the kernels count",
                           (long long)c[i].tokens, (long long)c[i].w->base.n, (long long)c[i].w->base.k);
    return c->tokens <= FEW && fits(be, few_shared<W>()) ? run_few(be, w, c, n) : run_tiles(be, w, c, n);
}

#endif
