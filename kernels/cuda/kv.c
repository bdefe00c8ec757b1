/* Makes the cache of keys and values. */
#include "kernels/cuda/kv.h"

#include <stdlib.h>

size_t lk_cuda_kv_page_bytes(const lk_backend *be, const lk_kv_shape *s)
{
    (void)be;
    return (size_t)s->n_layers * (size_t)s->kv_heads * (size_t)lk_cuda_kv_head_bytes(s);
}

lk_status lk_cuda_kv_create(lk_backend *be, lk_kv **out, const lk_kv_shape *shape)
{
    lk_cuda *cu = lk_cuda_of(be);
    int64_t positions = (int64_t)shape->n_pages * shape->page_tokens;
    if (positions > INT32_MAX)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "a cache of %lld positions; at most %d", (long long)positions, INT32_MAX);
    lk_kv *kv = calloc(1, sizeof *kv);
    if (!kv) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for a KV cache");
    kv->shape = *shape;
    kv->page_bytes = lk_cuda_kv_page_bytes(be, shape);
    lk_status status = lk_alloc(be, (size_t)shape->n_pages * kv->page_bytes, &kv->data);
    if (status) {
        free(kv);
        return status;
    }
    cu->kv = kv;
    cu->n_kvs++;
    *out = kv;
    return LK_OK;
}

void lk_cuda_kv_destroy(lk_backend *be, lk_kv *kv)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_step_forget(be);
    cu->n_kvs--;
    if (cu->kv == kv) cu->kv = NULL;
    lk_free(be, kv->data);
    free(kv);
}
