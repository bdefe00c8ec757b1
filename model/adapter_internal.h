/* Shared by adapter.c and adapter_io.c. */
#ifndef LK_MODEL_ADAPTER_INTERNAL_H
#define LK_MODEL_ADAPTER_INTERNAL_H

#include "data/peft.h"
#include "model/adapter.h"
#include "model/adapter_parts.h"

/* Ranks above this are a mistake or an attack on memory; the kernels are tested up to it. */
enum { LK_ADAPTER_MAX_RANK = 512 };

lk_status lk_adapter_alloc(lk_adapter **a, const lk_model *model, lk_error *err); /* sites zeroed, no weights */
/* Offsets of every site's factors, in site order. */
void lk_adapter_place(lk_adapter_site *sites, int32_t n_sites, int64_t *n_params, int32_t *max_rank);
/* rank and alpha of a module path by the spec and its patterns; rank 0: not a target (which `targeted` says of its name). */
lk_status lk_adapter_rank(const lk_adapter_spec *spec, const char *path, bool targeted, int32_t *rank, double *alpha, lk_error *err);

/* adapter_whole.c. Checks what the spec says beside factors of sites, whose ranks are there, and notes it in whole and sites. */
lk_status lk_adapter_whole_fill(lk_adapter_whole *whole, lk_adapter_site *sites, const lk_config *config, const lk_adapter_spec *spec,
                                lk_error *err);
/* Offsets behind those of the sites. n_params is theirs in and all's out. */
void lk_adapter_whole_place(lk_adapter_whole *whole, lk_adapter_site *sites, const lk_config *config, int64_t *n_params, int64_t *n_decayed,
                            int32_t *max_rank);
int64_t lk_adapter_whole_trainable(const lk_adapter_whole *whole, const lk_adapter_site *sites, const lk_config *config);
bool lk_adapter_whole_any(const lk_adapter_whole *whole);
/* What it begins with, into host[n_params]. */
lk_status lk_adapter_whole_init(const lk_adapter *a, const lk_adapter_spec *spec, float *host, uint64_t seed, lk_error *err);
/* Bytes of the tables' copies, and the copies themselves (zero, until refreshed), in a->own. */
size_t lk_adapter_whole_bytes(const lk_backend *be, const lk_config *config, const lk_adapter_whole *whole);
lk_status lk_adapter_whole_create(lk_adapter *a, lk_error *err);
lk_status lk_adapter_whole_refresh(lk_adapter *a, lk_error *err);

/* Uniform in +-bound, and normal with a deviation, by the place in the flat vector. */
void lk_adapter_uniform(float *a, int64_t first, int64_t n, float bound, lk_philox_key key);
void lk_adapter_normal(float *a, int64_t first, int64_t n, double deviation, lk_philox_key key);

/* Scratch that a DoRA's norms take on the backend. */
size_t lk_adapter_norm_scratch(const lk_backend *be, const lk_config *config);
/* Offsets in the extra vector, in site order and then of factors of a head that was read; returns its length. */
int64_t lk_adapter_place_extra(lk_adapter *a);

/* Takes n_params fp32 values in the flat layout into backend memory, and updates the digest. */
lk_status lk_adapter_set(lk_adapter *a, const float *host, lk_error *err);
lk_status lk_adapter_check_plain(const lk_peft *peft, const char *path, lk_error *err);
void lk_adapter_digest(lk_adapter *a, const void *values); /* of these weights, in host memory */
/* The factors of all experts of a layer as PEFT stacks them, from values in the flat layout. first: the site of expert 0's gate, for gate
 * and up, or of its down. Fills all of m but the name; *memory is the caller's to free. */
lk_status lk_adapter_stack(const lk_adapter *a, const float *values, int32_t first, lk_peft_write_module *m, float **memory, lk_error *err);
/* PiSSA's factors of every site into host[n_params] (adapter_pissa.c). */
lk_status lk_adapter_pissa(const lk_adapter *a, float *host, uint64_t seed, lk_error *err);
/* Extras (adapter_extras.c). For a DoRA that is made here; lk_adapter_refresh comes after. */
lk_status lk_adapter_extras_create(lk_adapter *a, lk_error *err);
/* For an adapter that was read, its sites placed. Does nothing for plain factors. */
lk_status lk_adapter_extras_load(lk_adapter *a, const lk_adapter_parts *parts, const char *path, lk_error *err);
void lk_adapter_extras_free(lk_adapter *a);
float lk_adapter_scale(double alpha, int32_t rank, bool use_rslora);

#endif
