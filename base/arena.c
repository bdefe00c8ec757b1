#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct lk_arena_block {
    lk_arena_block *next;
    size_t used, size;
    _Alignas(16) unsigned char data[];
};

enum { BLOCK_BYTES = 64 * 1024 - 64 };

void *lk_arena_alloc(lk_arena *arena, size_t size)
{
    if (size > SIZE_MAX / 2) return NULL;
    size = (size + 15) & ~(size_t)15;
    if (size == 0) size = 16;
    lk_arena_block *block = arena->head;
    if (!block || block->size - block->used < size) {
        size_t room = size > BLOCK_BYTES ? size : BLOCK_BYTES;
        lk_arena_block *fresh = calloc(1, sizeof *fresh + room);
        if (!fresh) return NULL;
        fresh->size = room;
        /* A large block must not hide the room left in the current one. */
        if (block && size > BLOCK_BYTES / 2) {
            fresh->next = block->next;
            block->next = fresh;
            fresh->used = size;
            return fresh->data;
        }
        fresh->next = block;
        arena->head = block = fresh;
    }
    void *p = block->data + block->used;
    block->used += size;
    return p;
}

char *lk_arena_strndup(lk_arena *arena, const char *text, size_t length)
{
    char *copy = lk_arena_alloc(arena, length + 1);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}

char *lk_arena_strdup(lk_arena *arena, const char *text) { return lk_arena_strndup(arena, text, strlen(text)); }

void lk_arena_free(lk_arena *arena)
{
    for (lk_arena_block *block = arena->head, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    arena->head = NULL;
}
