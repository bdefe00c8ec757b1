/* JSON in one spelling: keys sorted by bytes, no white space. Equal values give equal text, so it can be hashed and compared. */
#ifndef LK_TRAIN_CANONICAL_H
#define LK_TRAIN_CANONICAL_H

#include "base/json.h"

/* free() the text; NULL without memory. */
char *lk_canonical_json(const cJSON *value);

#endif
