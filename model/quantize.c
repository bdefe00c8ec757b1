/* lk_model_quantize: a 16-bit folder to a bitsandbytes NF4 one. Linear layers of the blocks are quantised; embedding, head, norms and
 * biases are copied byte for byte, so the identity of the base stays. Of a GGUF file they are what its blocks decode to, in fp32 where it
 * has no plain type for them; the folder's identity is then its own. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/bnb.h"
#include "model/folder.h"
#include "model/model.h"
#include "model/weights.h"

static lk_status write_linear(lk_st_writer *w, const lk_st_tensor *t, lk_pool *pool, lk_error *err)
{
    lk_nf4_host m;
    LK_TRY(lk_nf4_host_quantize(&m, t, t->shape[0], t->shape[1], pool, err));
    lk_bnb_matrix out = {t->name, lk_torch_dtype(t->type), m.n, m.k, m.codes, m.absmax8, m.absmax2, m.offset};
    lk_status status = lk_bnb_write(w, &out, err);
    lk_nf4_host_free(&m);
    return status;
}

static lk_status write_other(lk_st_writer *w, const lk_st_tensor *t, lk_pool *pool, lk_error *err)
{
    const void *data;
    void *own;
    LK_TRY(lk_weights_bytes(t, pool, &data, &own, err));
    lk_status status = lk_st_writer_write(w, data, (size_t)t->n_bytes, err);
    free(own);
    return status;
}

static lk_status write_all(const lk_safetensors *st, const lk_config *c, lk_st_writer *w, lk_pool *pool, lk_error *err)
{
    int64_t n = lk_safetensors_count(st);
    for (int64_t i = 0; i < n; i++) {
        const lk_st_tensor *t = lk_safetensors_at(st, i);
        if (lk_weights_site(c, t->name) >= 0) {
            if (t->n_dims != 2) return lk_fail(err, LK_ERR_FORMAT, "%s: %s is not a matrix", t->file, t->name);
            LK_TRY(lk_bnb_declare(w, t->name, t->shape[0], t->shape[1], err));
        } else {
            LK_TRY(lk_st_writer_declare(w, t->name, t->type, t->n_dims, t->shape, err));
        }
    }
    for (int64_t i = 0; i < n; i++) {
        const lk_st_tensor *t = lk_safetensors_at(st, i);
        if (lk_weights_site(c, t->name) >= 0)
            LK_TRY(write_linear(w, t, pool, err));
        else
            LK_TRY(write_other(w, t, pool, err));
    }
    return LK_OK;
}

lk_status lk_model_quantize(const char *folder, const char *out, int threads, lk_error *err)
{
    lk_config config;
    lk_safetensors *st = NULL;
    lk_pool *pool = NULL;
    lk_st_writer *w = NULL;
    lk_status status;
    if ((status = lk_config_read(&config, folder, err))) goto out;
    if ((status = lk_weights_open(&st, folder, &config, err))) goto out;
    if (lk_bnb_any(st)) {
        status = lk_fail(err, LK_ERR_ARGUMENT, "%s is already a 4-bit checkpoint", folder);
        goto out;
    }
    if ((status = lk_weights_check_names(st, &config, err))) goto out;
    if ((status = lk_pool_create(&pool, threads, err))) goto out;
    if ((status = lk_folder_prepare_output(folder, out, err))) goto out;
    const lk_st_tensor *embedding = lk_safetensors_find(st, "model.embed_tokens.weight");
    if (!embedding) {
        status = lk_fail(err, LK_ERR_NOT_FOUND, "%s: tensor model.embed_tokens.weight is missing", folder);
        goto out;
    }
    if ((status = lk_st_writer_create(&w, out, "model", (int64_t)5 << 30, err))) goto out;
    if ((status = write_all(st, &config, w, pool, err))) goto out;
    status = lk_st_writer_commit(w, err);
    if (status) goto out;
    if (config.experts)
        lk_log(LK_LOG_WARN, "%s: transformers 5 stacks the experts of a layer and cannot read them in 4 bits one by one; Lorikeet can",
               out);
    w = NULL;
    if ((status = lk_folder_copy_tokenizer(folder, out, err))) goto out;
    /* The configuration last: a folder without it is visibly unfinished. */
    status = lk_folder_write_config(folder, out, lk_torch_dtype(embedding->type), lk_bnb_config(embedding->type), false, err);
out:
    lk_st_writer_abort(w);
    lk_pool_destroy(pool);
    lk_safetensors_close(st);
    return status;
}
