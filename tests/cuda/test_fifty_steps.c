/* label: slow */
/* Fifty steps of the trainer on the CUDA backend beside PEFT's over bitsandbytes, on the same batches. PEFT computed in fp32, the backend
 * does in bf16; at a rate of 1e-3 the run is not chaotic, so that this rounding is all there is to see. A step here is 80 tokens of a tiny
 * random model: its loss, 3.5 to 6, may be 1.5e-2 away (0.4%), the mean over the fifty steps 5e-3. The CPU in bf16 is held to the same. */
#include "tests/train/fifty_steps.h"

static const lk_backend_options cuda = {.device = "cuda", .compute = LK_BF16};

static void test_beside_peft(void **state) { (void)state, fifty_steps(&(fifty){cuda, LK_ADAMW_F32, true, 1.5e-2, 0, 5e-3}); }
static void test_8bit_beside_peft(void **state) { (void)state, fifty_steps(&(fifty){cuda, LK_ADAMW_8BIT, true, 1.5e-2, 0, 5e-3}); }

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_beside_peft), cmocka_unit_test(test_8bit_beside_peft)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
