/* tests/golden/trained.safetensors: PEFT's runs with everything that is trained beside factors of linear layers (make_trained.py). */
#ifndef LK_TESTS_TRAINED_H
#define LK_TESTS_TRAINED_H

#include "tests/model.h"

enum { TRAINED_STEPS = 4, TRAINED_MICRO = 2, TRAINED_LENGTH = 24, N_TRAINED = 15 };

typedef struct trained_case {
    const char *name, *base; /* a folder under models/ ("llama-tiny"), else a case of families.json */
    lk_adapter_spec spec;
} trained_case;

extern const trained_case trained_cases[N_TRAINED];

/* A tensor of adapter_model.safetensors that the adapter trains: n values from offset `at` of its flat vector. */
typedef struct trained_tensor {
    char key[300];
    int64_t at, n;
    int32_t turned;     /* not 0: the rank; [n / rank][rank] here, [rank][n / rank] in PEFT */
    float keep, spread; /* the rule of its start: keep * PEFT's + spread * u(key) */
} trained_tensor;

/* All of them; free(). */
trained_tensor *trained_tensors(const lk_adapter *a, int *n);
/* The values of one out of a flat vector, in PEFT's order; free(). */
float *trained_values(const trained_tensor *t, const float *flat);

/* The folder of a case's base; free(). How it is read: NF4 for models/, as stored for families. */
char *trained_base(const trained_case *c, lk_quant *quant);
/* The adapter of a case at its start. */
lk_adapter *trained_adapter(const lk_model *model, const trained_case *c);
lk_safetensors *trained_golden(void);
/* "NAME.what" of the golden file. */
float *trained_floats(const lk_safetensors *st, const trained_case *c, const char *what, int64_t *n);
int32_t *trained_ints(const lk_safetensors *st, const trained_case *c, const char *what);

#endif
