/* Opens the CPU backend: choose a tier, start the threads, name it. */
#include "kernels/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>

static lk_status choose_tier(lk_cpu_tier *tier, const char *name, lk_error *err)
{
    lk_cpu_tier best = lk_cpu_tier_best();
    *tier = best;
    if (!name) return LK_OK;
    if (!lk_cpu_tier_parse(name, tier))
        return lk_fail(err, LK_ERR_ARGUMENT, "CPU tier \"%s\" is not known; use reference, portable, avx2, avx512 or amx", name);
    if (*tier > best)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "CPU tier \"%s\": this processor goes up to \"%s\"", name, lk_cpu_tier_name(best));
    return LK_OK;
}

lk_status lk_cpu_open(lk_backend **be, const lk_backend_options *options, lk_error *err)
{
    lk_cpu_tier tier;
    LK_TRY(choose_tier(&tier, options->cpu_tier, err));
    lk_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return lk_fail(err, LK_ERR_MEMORY, "no memory for the CPU backend");
    int threads = options->threads;
    if (!threads && options->ranks) { /* the others want their share */
        threads = lk_pool_default_threads() / lk_ranks_size(options->ranks);
        if (threads < 1) threads = 1;
    }
    lk_status status = lk_pool_create(&cpu->pool, tier == LK_CPU_REFERENCE ? 1 : threads, err);
    if (status) {
        free(cpu);
        return status;
    }
    cpu->tier = tier;
    cpu->base.ops = tier == LK_CPU_REFERENCE ? &lk_ref_ops : &lk_cpu_ops;
    cpu->base.compute = options->compute;
    cpu->base.act = LK_F32;
    cpu->base.ranks = options->ranks;
    cpu->base.threads = lk_pool_threads(cpu->pool);
    snprintf(cpu->base.name, sizeof cpu->base.name, "cpu/%s", lk_cpu_tier_name(tier));
    *be = &cpu->base;
    return LK_OK;
}

/* Nothing runs behind the host's back here: a backend like any other, with one thread, will do. Of the same tier: matrices go between. */
lk_status lk_cpu_loader_open(lk_backend **loader, lk_backend *be, lk_error *err)
{
    const char *tier = lk_cpu_tier_name(lk_cpu_of(be)->tier);
    return lk_cpu_open(loader, &(lk_backend_options){.threads = 1, .compute = be->compute, .cpu_tier = tier}, err);
}

void lk_cpu_close(lk_backend *be)
{
    lk_cpu *cpu = lk_cpu_of(be);
    lk_free(be, cpu->scratch);
    lk_pool_destroy(cpu->pool);
    free(cpu);
}
