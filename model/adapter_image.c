/* An adapter as one piece of memory: adapter.h. The parts begin at multiples of ALIGN, so that copies of a table are as good as the table.
 */
#include <string.h>

#include "model/adapter_internal.h"

enum { ALIGN = 256 };
enum { EXTRA, TOKENS, TABLES, N_TABLES = 5, N_PARTS = TABLES + N_TABLES };

static size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static void list_tables(const lk_adapter *a, lk_matrix *tables[N_TABLES])
{
    lk_matrix *const all[N_TABLES] = {a->embedding, a->head == a->embedding ? NULL : a->head, a->embed_a, a->embed_b, a->token_rows};
    memcpy(tables, all, sizeof all);
}

/* Bytes and offset of each part, offsets[N_PARTS] the end. */
static void lay_out(const lk_adapter *a, size_t sizes[N_PARTS], size_t offsets[N_PARTS + 1])
{
    lk_matrix *tables[N_TABLES];
    list_tables(a, tables);
    sizes[EXTRA] = (size_t)a->n_extra * sizeof *a->extra;
    sizes[TOKENS] = (size_t)a->n_tokens * sizeof *a->token_ids;
    for (int i = 0; i < N_TABLES; i++) {
        const lk_matrix *w = tables[i];
        sizes[TABLES + i] = w ? lk_matrix_bytes(a->model->be, lk_matrix_type(w), lk_matrix_n(w), lk_matrix_k(w), false) : 0;
    }
    offsets[0] = aligned(lk_adapter_bytes(a));
    for (int i = 0; i < N_PARTS; i++) offsets[i + 1] = offsets[i] + aligned(sizes[i]);
}

size_t lk_adapter_image_bytes(const lk_adapter *a)
{
    size_t sizes[N_PARTS], offsets[N_PARTS + 1];
    if (!a->own && !a->folded) return lk_adapter_bytes(a);
    lay_out(a, sizes, offsets);
    return offsets[N_PARTS];
}

/* Between the parts the image is zero, so that its bytes follow from the adapter. The handles of tables stay, the loader goes. */
lk_status lk_adapter_fold(lk_adapter *a, void *image, lk_error *err)
{
    if (!a->own || a->folded) return LK_OK;
    lk_backend *be = a->own;
    size_t sizes[N_PARTS], offsets[N_PARTS + 1], factors = lk_adapter_bytes(a);
    lk_matrix *tables[N_TABLES];
    list_tables(a, tables);
    lay_out(a, sizes, offsets);
    memset((char *)image + factors, 0, offsets[N_PARTS] - factors);
    lk_status status = LK_OK;
    for (int i = 0; i < N_PARTS && !status; i++) {
        if (!sizes[i]) continue;
        const void *from = i == EXTRA ? (const void *)a->extra : i == TOKENS ? a->token_ids : lk_matrix_data(be, tables[i - TABLES]);
        status = lk_download(be, (char *)image + offsets[i], from, sizes[i]);
    }
    for (int i = 0; i < N_TABLES && !status; i++)
        if (tables[i]) status = lk_matrix_lend(be, tables[i], NULL);
    if (status) return lk_backend_fail(be, status, err);
    lk_free(be, a->extra);
    lk_free(be, a->token_ids);
    lk_backend_close(be);
    a->own = NULL;
    a->folded = true;
    lk_adapter_attach(a, NULL);
    return LK_OK;
}

void lk_adapter_attach(lk_adapter *a, void *place)
{
    size_t sizes[N_PARTS], offsets[N_PARTS + 1];
    void *parts[N_PARTS] = {0};
    lk_matrix *tables[N_TABLES];
    a->weights = place;
    if (!a->folded) return;
    lay_out(a, sizes, offsets);
    list_tables(a, tables);
    for (int i = 0; i < N_PARTS && place; i++) parts[i] = (char *)place + offsets[i];
    a->extra = parts[EXTRA];
    a->token_ids = parts[TOKENS];
    for (int i = 0; i < N_TABLES; i++)
        if (tables[i]) (void)lk_matrix_lend(a->model->be, tables[i], parts[TABLES + i]); /* they were lent before: only the place changes */
}
