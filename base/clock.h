/* Time: monotonic seconds for durations, wall-clock seconds for stamps. */
#ifndef LK_BASE_CLOCK_H
#define LK_BASE_CLOCK_H

double lk_clock_seconds(void); /* monotonic, from an arbitrary start */
double lk_clock_unix(void);    /* seconds since 1970, with fraction */

#endif
