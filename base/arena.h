/* Memory that is freed all at once: a growing list of blocks carved from the front.
 *
 *     lk_arena arena = {0};
 *     char *name = lk_arena_strdup(&arena, "q_proj");
 *     lk_arena_free(&arena);
 *
 * For parsed files and requests, whose pieces die together. Not thread-safe: one arena, one owner. */
#ifndef LK_BASE_ARENA_H
#define LK_BASE_ARENA_H

#include <stddef.h>

typedef struct lk_arena_block lk_arena_block;
typedef struct lk_arena {
    lk_arena_block *head; /* newest block; zero-initialised means empty */
} lk_arena;

/* 16-byte aligned, zeroed. Returns NULL only when the system has no memory. size 0 gives a valid unique pointer. */
void *lk_arena_alloc(lk_arena *arena, size_t size);
char *lk_arena_strdup(lk_arena *arena, const char *text);
char *lk_arena_strndup(lk_arena *arena, const char *text, size_t length); /* adds the final zero */
/* Frees everything and leaves an empty arena that may be used again. */
void lk_arena_free(lk_arena *arena);

#endif
