/* Preparing frozen matrices for the device, once: NF4 into tensor-core tiles (kernels/cuda/matrix.h), everything else into padded bf16
 * rows.
 *
 * NF4: the file's codes go up in pieces to memory taken for the call, and the device reorders them; on the host the reordering of a 70B
 * model would take longer than reading it. Dense: converted on the host in pieces, or copied as they are when nothing has to change. */
#include "kernels/cuda/matrix.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/nf4.h"

enum { PIECE_BYTES = 16 << 20, FEWEST_ROWS = 128 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---------------------------------------------------------------------------------------------- sizes */

static lk_dtype storage_for(lk_dtype type, int64_t k) { return type == LK_NF4 && k % LK_CUDA_TILE_DEPTH == 0 ? LK_NF4 : LK_BF16; }

/* Where the parts of an NF4 matrix lie; each 256-byte aligned. */
typedef struct layout {
    size_t scales, scales2, bytes;
} layout;

static layout layout_for(lk_dtype storage, int64_t n, int64_t k, bool nested)
{
    layout l = {0};
    if (storage == LK_BF16) {
        l.bytes = (size_t)(n * lk_cuda_padded(k)) * 2;
        return l;
    }
    size_t down = (size_t)((n + LK_CUDA_TILE_ROWS - 1) / LK_CUDA_TILE_ROWS), along = (size_t)(k / LK_CUDA_TILE_DEPTH);
    size_t blocks = (size_t)n * along;
    l.scales = lk_cuda_carved(down * along * LK_CUDA_TILE_BYTES);
    l.scales2 = l.scales + lk_cuda_carved(nested ? blocks : blocks * 4);
    l.bytes = l.scales2 + (nested ? lk_cuda_carved((size_t)lk_nf4_nested_blocks((int64_t)blocks) * 4) : 0);
    return l;
}

size_t lk_cuda_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k, bool nested)
{
    (void)be;
    return layout_for(storage_for(source_type, k), n, k, nested).bytes;
}

size_t lk_cuda_weights_scratch(const lk_limits *limits)
{
    int64_t fewest = FEWEST_ROWS * limits->width, most = limits->matrix > fewest ? limits->matrix : fewest;
    return lk_cuda_carved((size_t)most * 2);
}

int64_t lk_cuda_matrix_fit(const lk_matrix *w, size_t workspace_bytes)
{
    if (lk_cuda_matrix_of(w)->storage != LK_NF4) return w->n;
    int64_t rows = (int64_t)(workspace_bytes / ((size_t)w->k * 2));
    if (rows >= w->n) return w->n;
    return rows < FEWEST_ROWS ? FEWEST_ROWS : rows / FEWEST_ROWS * FEWEST_ROWS;
}

/* ---------------------------------------------------------------------------------------------- creating */

/* Reads of a file's mapping and conversions both go through memory of the host that is pageable: lk_rt_copy is done with it on return. */
static lk_status fill_nf4(lk_backend *be, lk_cuda_matrix *w, const lk_matrix_source *s, const layout *l)
{
    lk_cuda *cu = lk_cuda_of(be);
    char *memory = w->memory;
    int64_t row_bytes = s->k / 2, blocks = s->n * (s->k / LK_CUDA_TILE_DEPTH);
    int64_t step = PIECE_BYTES / row_bytes / LK_CUDA_TILE_ROWS * LK_CUDA_TILE_ROWS;
    if (step < LK_CUDA_TILE_ROWS) step = LK_CUDA_TILE_ROWS;
    if (step > s->n) step = s->n;
    w->nf4 = (lk_cuda_nf4){.tiles = memory, .constants = cu->constants};
    if (s->absmax8) {
        w->nf4.absmax8 = (const uint8_t *)memory + l->scales;
        w->nf4.absmax2 = (const float *)(const void *)(memory + l->scales2);
        w->nf4.offset = s->absmax_offset;
        LK_TRY(lk_rt_copy(memory + l->scales, s->absmax8, (size_t)blocks, cu->stream, &be->error));
        LK_TRY(lk_rt_copy(memory + l->scales2, s->absmax2, (size_t)lk_nf4_nested_blocks(blocks) * 4, cu->stream, &be->error));
    } else {
        w->nf4.absmax = (const float *)(const void *)(memory + l->scales);
        LK_TRY(lk_rt_copy(memory + l->scales, s->absmax, (size_t)blocks * 4, cu->stream, &be->error));
    }
    void *piece;
    LK_TRY(lk_rt_malloc(&piece, (size_t)(step * row_bytes), &be->error));
    lk_status status = LK_OK;
    for (int64_t row = 0; row < s->n && !status; row += step) {
        int64_t rows = smaller(step, s->n - row);
        status = lk_rt_copy(piece, (const char *)s->data + row * row_bytes, (size_t)(rows * row_bytes), cu->stream, &be->error);
        if (!status) status = lk_cuda_nf4_pack(be, memory + row * row_bytes, piece, rows, s->k);
    }
    if (!status) status = lk_rt_stream_sync(cu->stream, &be->error);
    lk_rt_free(piece);
    return status;
}

/* Rows [row, row + rows) of the source as fp32: NF4 here is the one whose blocks run over the ends of rows. */
static void source_rows(float *values, const lk_matrix_source *s, int64_t row, int64_t rows)
{
    int64_t first = row * s->k, n = rows * s->k;
    if (s->type != LK_NF4) {
        lk_to_f32(values, (const char *)s->data + first * lk_dtype_size(s->type), s->type, n);
        return;
    }
    const uint8_t *codes = s->data;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = first + i;
        int code = at % 2 ? codes[at / 2] & 15 : codes[at / 2] >> 4;
        values[i] = lk_nf4_codebook[code] * s->absmax[at / LK_NF4_BLOCK];
    }
}

static lk_status fill_converted(lk_backend *be, lk_cuda_matrix *w, const lk_matrix_source *s)
{
    lk_cuda *cu = lk_cuda_of(be);
    int64_t step = smaller(s->n, (int64_t)(PIECE_BYTES / ((size_t)w->ld * 4)) + 1);
    float *values = malloc((size_t)(step * s->k) * sizeof(float));
    uint16_t *rows = calloc((size_t)(step * w->ld), sizeof(uint16_t));
    lk_status status = LK_OK;
    if (!values || !rows) status = lk_fail(&be->error, LK_ERR_MEMORY, "no host memory to convert %lld rows", (long long)step);
    for (int64_t row = 0; row < s->n && !status; row += step) {
        int64_t count = smaller(step, s->n - row);
        source_rows(values, s, row, count);
        for (int64_t r = 0; r < count; r++) lk_from_f32(rows + r * w->ld, LK_BF16, values + r * s->k, s->k);
        status = lk_rt_copy((char *)w->memory + row * w->ld * 2, rows, (size_t)(count * w->ld) * 2, cu->stream, &be->error);
    }
    if (!status) status = lk_rt_stream_sync(cu->stream, &be->error);
    free(values);
    free(rows);
    return status;
}

lk_status lk_cuda_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *source)
{
    lk_cuda_matrix *w = calloc(1, sizeof *w);
    if (!w) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for a matrix");
    w->base = (lk_matrix){source->type, source->n, source->k};
    w->storage = storage_for(source->type, source->k);
    w->ld = w->storage == LK_BF16 ? lk_cuda_padded(source->k) : 0;
    layout l = layout_for(w->storage, source->n, source->k, source->absmax8 != NULL);
    lk_status status = lk_cuda_alloc(be, l.bytes, &w->memory);
    if (status) {
        free(w);
        return status;
    }
    if (w->storage == LK_NF4)
        status = fill_nf4(be, w, source, &l);
    else if (source->type == LK_BF16 && w->ld == source->k)
        status = lk_cuda_upload(be, w->memory, source->data, l.bytes);
    else
        status = fill_converted(be, w, source);
    if (status) {
        lk_cuda_matrix_destroy(be, &w->base);
        return status;
    }
    *out = &w->base;
    return LK_OK;
}

void lk_cuda_matrix_destroy(lk_backend *be, lk_matrix *w)
{
    lk_cuda_matrix *m = (lk_cuda_matrix *)w;
    if (!m->lent) lk_cuda_free(be, m->memory);
    free(m);
}

const void *lk_cuda_matrix_data(const lk_matrix *w) { return lk_cuda_matrix_of(w)->memory; }

/* Dense ones only: nothing else holds the address. */
void lk_cuda_matrix_lend(lk_backend *be, lk_matrix *w, void *data)
{
    lk_cuda_matrix *m = (lk_cuda_matrix *)w;
    if (!m->lent) lk_cuda_free(be, m->memory);
    m->lent = true;
    m->memory = data;
}

/* ---------------------------------------------------------------------------------------------- reading */

lk_status lk_cuda_matrix_rows(lk_backend *be, const lk_matrix *w, int64_t begin, int64_t end, void *workspace, const void **rows,
                              int64_t *ld)
{
    const lk_cuda_matrix *m = lk_cuda_matrix_of(w);
    if (m->storage == LK_BF16) {
        *rows = (const char *)m->memory + begin * m->ld * 2;
        *ld = m->ld;
        return LK_OK;
    }
    *rows = workspace;
    *ld = w->k;
    return lk_cuda_nf4_dequantise(be, workspace, w->k, m, begin, end);
}
