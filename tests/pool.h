/* The pool without an engine: the test is the engine's thread, so that what lies where is known. Sequences' pages and adapters share the
 * pool of a real backend; adapters come, go, and push pages and each other about; every byte must stay what it was. */
#ifndef LK_TESTS_POOL_H
#define LK_TESTS_POOL_H

#include "kernels/ops.h"

/* All of it on one backend. */
void check_pool(const lk_backend_options *backend);

#endif
