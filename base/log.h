/* Log lines for people, on standard error.
 *
 *     lk_log(LK_LOG_INFO, "loaded %s in %.1f s", path, seconds);
 *
 * Results of commands go to standard output and never through here. The level is process-wide state of the command
 * line (the one deliberate global): set once by main before threads start. Thread-safe; one call is one line. */
#ifndef LK_BASE_LOG_H
#define LK_BASE_LOG_H

typedef enum lk_log_level { LK_LOG_ERROR, LK_LOG_WARN, LK_LOG_INFO, LK_LOG_DEBUG } lk_log_level;

void lk_log_set_level(lk_log_level level);
/* Parses error|warn|info|debug; returns 0, or -1 for another word. */
int lk_log_parse_level(const char *word, lk_log_level *level);
void lk_log(lk_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
