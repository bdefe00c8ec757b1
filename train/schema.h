/* The part of JSON Schema (draft 2020-12) that the recipe schema uses: checking, and filling in defaults.
 *
 *     LK_TRY(lk_schema_check(schema, recipe, "recipe.json", err));    -- LK_ERR_ARGUMENT with the place and what is allowed there
 *     LK_TRY(lk_schema_fill(schema, recipe, err));                    -- every "default" of a missing key, recursively
 *
 * Keywords: type, properties, required, additionalProperties (false, or a schema for the rest), items, minItems, maxItems, enum, const,
 * minimum, maximum, exclusiveMinimum, exclusiveMaximum, anyOf, oneOf, $ref into the same file, default. A schema with any other keyword is
 * LK_ERR_INTERNAL: a rule that nobody checks would be a lie. An unknown key is answered with the nearest known one. */
#ifndef LK_TRAIN_SCHEMA_H
#define LK_TRAIN_SCHEMA_H

#include "base/json.h"

/* recipes/recipe.schema.json as it was when the program was built. */
extern const unsigned char lk_recipe_schema[];
extern const size_t lk_recipe_schema_size;

/* where: the name of the checked file, for messages. The schema is the root (its $defs serve $ref). */
lk_status lk_schema_check(const cJSON *schema, const cJSON *instance, const char *where, lk_error *err);
/* instance must have passed the check. */
lk_status lk_schema_fill(const cJSON *schema, cJSON *instance, lk_error *err);

#endif
