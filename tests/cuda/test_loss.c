/* The head's loss on the CUDA backend: the CPU's cases, several chunks of rows, a quantised head in blocks, ties. */
#include "tests/cuda/cuda_check.h"

#include "kernels/nf4.h"
#include "tests/kernels/loss_cases.h"

typedef struct cuda_case {
    loss_case shape;
    bool nf4;      /* the head */
    bool evaluate; /* no gradient */
} cuda_case;

/* 1100 rows are two chunks of the 1024 that a small vocabulary allows; 8200 values are three tiles of a row. */
static const cuda_case more_cases[] = {{{1100, 23, 16, 0, 13}, false, false},
                                       {{9, 8200, 8, 0, 0}, false, false},
                                       {{21, 300, 64, 0, 4}, true, false},
                                       {{21, 300, 64, 8, 4}, true, true},
                                       {{12, 4097, 24, 0, 3}, false, true}};

static lk_matrix *head_make(lk_backend *be, const cuda_case *c)
{
    int64_t n = c->shape.vocab * c->shape.width;
    float *w = random_floats(2, n, 1.0f);
    lk_matrix_source source = {.type = LK_F32, .n = c->shape.vocab, .k = c->shape.width, .data = w};
    uint8_t *codes = malloc((size_t)n / 2 + 1);
    float *absmax = malloc((size_t)lk_nf4_blocks(n) * sizeof(float));
    for (int64_t i = 0; i < n; i++) w[i] = round_bf16(w[i]);
    if (c->nf4) {
        lk_nf4_quantize(codes, absmax, w, n);
        source.type = LK_NF4;
        source.data = codes;
        source.absmax = absmax;
    }
    lk_matrix *head;
    OP(be, lk_matrix_create(be, &head, &source));
    free(w);
    free(codes);
    free(absmax);
    return head;
}

/* The gradient of the logits rounds to bf16 before its product, dx after it. A quantised head is rounded to bf16 here and not in the
 * reference: 0.2% of each of the 64 products of a logit, and so of logits of magnitude 8. */
static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const cuda_case *cc = the_case;
    const loss_case *c = &cc->shape;
    int32_t *labels = malloc((size_t)(c->rows + 1) * sizeof(int32_t));
    loss_labels(c, labels);
    float *values = random_floats(1, c->rows * c->width, 1.0f);
    device_tensor x = device_from(be, lk_backend_act(be), c->rows, c->width, c->gap, values),
                  dx = device_make(be, lk_backend_act(be), c->rows, c->width, c->gap), nll = device_make(be, LK_F32, c->rows, 1, 0);
    lk_matrix *head = head_make(be, cc);
    uint8_t *hits = malloc((size_t)c->rows + 1);
    void *hits_there;
    memset(hits, 77, (size_t)c->rows + 1);
    OP(be, lk_alloc(be, (size_t)c->rows + 1, &hits_there));
    OP(be, lk_upload(be, hits_there, hits, (size_t)c->rows + 1));
    OP(be, lk_linear_loss(be, device_f32(&nll), hits_there, cc->evaluate ? NULL : &dx.t, &x.t, head, labels, 0.25f, c->cap));
    OP(be, lk_download(be, hits, hits_there, (size_t)c->rows + 1));
    assert_int_equal(hits[c->rows], 77);
    float *hit_values = malloc((size_t)(c->rows + 1) * sizeof(float));
    for (int64_t t = 0; t < c->rows; t++) hit_values[t] = (float)hits[t];
    outcome_take(o, "hits", hit_values, c->rows, 0.0);
    outcome_add(o, "nll", &nll, cc->nf4 ? 1e-2 : 1e-5);
    if (!cc->evaluate) outcome_add(o, "dx", &dx, cc->nf4 ? 2e-2 : 1e-2);
    if (cc->evaluate) device_free(&dx);
    device_free(&x);
    lk_free(be, hits_there);
    lk_matrix_destroy(be, head);
    free(hits);
    free(values);
    free(labels);
}

static void test_cases(void **state)
{
    (void)state;
    for (int i = 0; i < (int)N_LOSS_CASES; i++) {
        cuda_case c = {.shape = loss_cases[i]};
        check_on_cuda("loss", run, &c);
    }
    /* Scratch for exactly this: the quantised head of 300 rows comes in blocks of 128. */
    for (int i = 0; i < (int)(sizeof more_cases / sizeof *more_cases); i++) {
        const loss_case *c = &more_cases[i].shape;
        lk_limits limits = {.tokens = c->rows, .width = c->width, .vocab = c->vocab, .matrix = 128 * c->width, .training = true};
        check_on_cuda_within(&limits, "loss", run, &more_cases[i]);
    }
}

/* All logits equal: the arg max is the lowest id. */
static void test_ties(void **state)
{
    (void)state;
    enum { T = 4, V = 5000, C = 8 };
    static const int32_t labels[T] = {0, 1, 4999, 0};
    lk_limits limits = {.tokens = T, .width = C, .vocab = V, .matrix = C * C, .training = true};
    lk_backend *be = open_cuda(&limits);
    float *ones = malloc(V * C * sizeof(float)), *nll;
    for (int i = 0; i < V * C; i++) ones[i] = 1.0f;
    lk_matrix *head;
    OP(be, lk_matrix_create(be, &head, &(lk_matrix_source){.type = LK_F32, .n = V, .k = C, .data = ones}));
    device_tensor x = device_from(be, LK_BF16, T, C, 0, ones), loss = device_make(be, LK_F32, T, 1, 0);
    void *hits_there;
    uint8_t hits[T];
    OP(be, lk_alloc(be, T, &hits_there));
    OP(be, lk_linear_loss(be, device_f32(&loss), hits_there, NULL, &x.t, head, labels, 1.0f, 0.0f));
    OP(be, lk_download(be, hits, hits_there, T));
    nll = device_values("nll", &loss);
    for (int t = 0; t < T; t++) {
        assert_int_equal(hits[t], labels[t] == 0);
        assert_true(fabs((double)nll[t] - log(V)) < 1e-4);
    }
    free(nll);
    free(ones);
    lk_free(be, hits_there);
    device_free(&x);
    device_free(&loss);
    lk_matrix_destroy(be, head);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_ties)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
