/* Stop strings over streamed text: lets through what can no longer be part of a stop string, holds back what may begin one.
 *
 *     lk_text_gate gate;
 *     lk_text_gate_init(&gate, stops, n_stops);
 *     matched = lk_text_gate_push(&gate, piece, size, true);
 *     lk_text_gate_take(&gate, finished, &text, &size);        -- send it
 *     lk_text_gate_free(&gate);
 *
 * The match that ends first wins, and among those ending together the longest: so the text does not depend on how it was cut into
 * tokens. The stop string itself and what follows are never given out. */
#ifndef LK_SERVE_TEXT_GATE_H
#define LK_SERVE_TEXT_GATE_H

#include <stdint.h>

#include "serve/writer.h"

typedef struct lk_text_gate {
    const char *const *stops; /* borrowed */
    int n_stops;
    lk_writer pending;
    size_t given;    /* bytes of pending that take() handed out; dropped by the next push */
    size_t searched; /* a match begins at or after this offset of pending */
    size_t cut;      /* offset of the match */
    bool matched;
    int64_t passed; /* bytes dropped from the front so far: position of pending.data[0] in the whole text */
} lk_text_gate;

void lk_text_gate_init(lk_text_gate *gate, const char *const *stops, int n_stops);
void lk_text_gate_free(lk_text_gate *gate);
/* true once a stop string is complete. armed false (before min_tokens): no match may include this text. */
bool lk_text_gate_push(lk_text_gate *gate, const char *bytes, size_t size, bool armed);
/* What may be sent now; all: nothing is held back any more. *text is valid until the next push. */
void lk_text_gate_take(lk_text_gate *gate, bool all, const char **text, size_t *size);
/* Position in the whole text after what take() gave last. */
int64_t lk_text_gate_position(const lk_text_gate *gate);

#endif
