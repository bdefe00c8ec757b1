/* UTF-8 and the character classes that tokenizers and chat templates ask for.
 *
 *     uint32_t cp;
 *     int length = lk_utf8_decode(p, n, &cp);     -- 0: malformed here
 */
#ifndef LK_DATA_TOKENIZER_UTF8_H
#define LK_DATA_TOKENIZER_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length (1..4) and code point of the well-formed sequence at p, or 0. n > 0. */
int lk_utf8_decode(const char *p, size_t n, uint32_t *cp);
int lk_utf8_encode(uint32_t cp, char out[4]);
/* For a malformed place: how many bytes one U+FFFD stands for (Unicode's "maximal subpart", as Python and Rust count).
 * *incomplete says that the text ended inside a sequence that could still become well formed. */
int lk_utf8_subpart(const char *p, size_t n, bool *incomplete);
size_t lk_utf8_valid_prefix(const char *p, size_t n); /* bytes before the first malformed place */
bool lk_is_space(uint32_t cp);                        /* Unicode White_Space */
bool lk_is_word(uint32_t cp);                         /* \w of Rust's regex crate: letters, marks, decimal digits, connectors, joiners */
bool lk_is_numeric(uint32_t cp);

#endif
