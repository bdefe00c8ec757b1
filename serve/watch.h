/* Clients that take for ever: each connection is in a phase that may last so long, however many bytes trickle meanwhile.
 *
 *     lk_watch_start(&watch, &limits, err);
 *     lk_watched *c = lk_watch_add(watch, socket);            -- a connection: it owes a request
 *     lk_watch_phase(watch, c, LK_PHASE_BUSY);                -- any thread; begins anew
 *     lk_watch_remove(watch, c);                              -- before the socket is closed
 *     lk_watch_stop(watch);
 *
 * The HTTP library's own timeout is one of silence, which a byte a minute evades. A thread of the watch looks at all connections a few
 * times within the shortest limit and shuts the sockets that are over theirs; what happens then is what happens to a client that leaves. */
#ifndef LK_SERVE_WATCH_H
#define LK_SERVE_WATCH_H

#include <stdint.h>

#include "base/status.h"

/* REQUEST: headers and body are to come. BUSY: the server computes; no limit. REPLY: the client is to take what is there. */
typedef enum lk_phase { LK_PHASE_REQUEST, LK_PHASE_BUSY, LK_PHASE_REPLY, LK_N_PHASES } lk_phase;

typedef struct lk_watch lk_watch;
typedef struct lk_watched lk_watched;

typedef struct lk_watch_limits {
    int seconds[LK_N_PHASES]; /* 0: none */
} lk_watch_limits;

lk_status lk_watch_start(lk_watch **watch, const lk_watch_limits *limits, lk_error *err);
void lk_watch_stop(lk_watch *watch); /* NULL is fine; all connections have been removed */

lk_watched *lk_watch_add(lk_watch *watch, int socket); /* NULL: no memory, it is not watched */
void lk_watch_remove(lk_watch *watch, lk_watched *connection);
void lk_watch_phase(lk_watch *watch, lk_watched *connection, lk_phase phase); /* NULL is fine */
int64_t lk_watch_closed(lk_watch *watch);                                     /* connections that were over a limit, ever */

#endif
