/* Recipes from hostile text: any bytes give a recipe or a checked error. The first line, when it begins with '!', is a --set. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "train/recipe.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char set[300] = "";
    const char *sets[1] = {set};
    if (size && bytes[0] == '!') {
        const uint8_t *end = memchr(bytes, '\n', size);
        size_t n = end ? (size_t)(end - bytes) : size;
        memcpy(set, bytes + 1, n - 1 < sizeof set - 1 ? n - 1 : sizeof set - 1);
        bytes += end ? n + 1 : n;
        size -= end ? n + 1 : n;
    }
    lk_error err = {0};
    lk_recipe *recipe = NULL;
    /* A folder that does not exist: "extends" finds nothing. */
    lk_status status = lk_recipe_parse(&recipe, (const char *)bytes, size, "fuzz.json", "/nonexistent/folder", sets, set[0] != 0, &err);
    if (!status != !!recipe || (status && (!err.message[0] || err.code != status))) abort();
    lk_recipe_free(recipe);
    return 0;
}
