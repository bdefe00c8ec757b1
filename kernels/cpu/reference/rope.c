/* Rotary positions (Su et al. 2021) in the half-split convention of transformers: pair i is columns i and D'/2 + i. */
#include <math.h>

#include "kernels/cpu/reference/reference.h"

lk_status lk_ref_rope_table(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq, float factor)
{
    (void)be;
    int64_t half = cos_sin->cols / 2;
    for (int64_t t = 0; t < cos_sin->rows; t++) {
        float *row = lk_row(cos_sin, t);
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)positions[t] * inv_freq[i]; /* rounded to fp32, as the models were trained with */
            row[i] = factor * (float)cos((double)angle);
            row[half + i] = factor * (float)sin((double)angle);
        }
    }
    return LK_OK;
}

lk_status lk_ref_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward)
{
    (void)be;
    int64_t head_dim = x->cols / heads, half = cos_sin->cols / 2;
    for (int64_t t = 0; t < x->rows; t++) {
        const float *cosine = lk_row(cos_sin, t), *sine = cosine + half;
        for (int64_t h = 0; h < heads; h++) {
            float *v = lk_row(x, t) + h * head_dim;
            for (int64_t i = 0; i < half; i++) {
                float c = cosine[i], s = backward ? -sine[i] : sine[i], a = v[i], b = v[half + i];
                v[i] = a * c - b * s;
                v[half + i] = b * c + a * s;
            }
        }
    }
    return LK_OK;
}
