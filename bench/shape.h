/* Random models of real shapes for benchmarks: a Hugging Face folder in bf16, made once and kept.
 *
 *     LK_TRY(bench_shape_folder(path, sizeof path, "100m", err));      -- bench-models/100m
 */
#ifndef LK_BENCH_SHAPE_H
#define LK_BENCH_SHAPE_H

#include <stddef.h>

#include "base/status.h"

/* "100m": Llama, hidden 768, 12 layers, 12/4 heads, ffn 2048, vocab 32000. "1b": hidden 2048, 16 layers, 32/8 heads, ffn 8192, vocab 32000.
 * The folder bench-models/NAME is written when it is not there. */
lk_status bench_shape_folder(char *path, size_t size, const char *name, lk_error *err);

#endif
