/* Lets cJSON allocate through zb_alloc, so that its allocations can be counted and made to fail. In tests
 * only: the hooks belong to the process, and the library leaves them to its host. */
#ifndef TESTS_CJSON_MEMORY_H
#define TESTS_CJSON_MEMORY_H

#include <cjson/cJSON.h>
#include <zerobit/memory.h>

static inline void cjson_allocates_here(void)
{
    cJSON_InitHooks(&(cJSON_Hooks){ .malloc_fn = zb_alloc, .free_fn = zb_free });
}

#endif
