/*
 * Who calls. A host is a simulated rank, or a thread outside of one. When a thread outside calls after a rank
 * did, or the other way round, it has waited for it by means that are not seen here (zb_sim_run): it then
 * knows what the other side knows. A host that comes for the first time was started by somebody, and knows
 * what all others know but the ranks of its own world.
 */
#include "sim/cuda/state.h"

#include <stdio.h>

#include "sim/world.h"

/* Threads are counted: an address may belong to one thread after the other. */
static uintptr_t thread_count;
static _Thread_local uintptr_t this_thread;

static void join_side(si_host *host, int outside)
{
    for (int i = 0; i < si.hosts.count; i++) {
        const si_host *other = si.hosts.items[i];
        if (other != host && (other->rank < 0) == outside) si_clock_join(&host->clock, &other->clock);
    }
}

static si_host *add_host(const void *key, const void *world, int rank)
{
    si_host *host = si_calloc(1, sizeof *host);
    host->key = key;
    host->world = world;
    host->rank = rank;
    host->slot = si.slot_count++;
    for (int i = 0; i < si.hosts.count; i++) {
        const si_host *other = si.hosts.items[i];
        if (world == NULL || other->world != world) si_clock_join(&host->clock, &other->clock);
    }
    si_clock_set(&host->clock, host->slot, 1);
    si_list_add(&si.hosts, host);
    return host;
}

static void cross_over(int to_outside)
{
    for (int i = 0; i < si.hosts.count; i++) {
        si_host *host = si.hosts.items[i];
        if ((host->rank < 0) == to_outside) join_side(host, !to_outside);
    }
}

si_host *si_host_find(void)
{
    const sim_rank *rank = sim_current_rank();
    if (this_thread == 0) this_thread = ++thread_count;
    const void *key = rank != NULL ? (const void *)rank : (const void *)this_thread;
    const void *world = rank != NULL ? rank->sim : NULL;
    const int outside = rank == NULL;
    if (outside != si.outside_called_last) cross_over(outside);
    si.outside_called_last = outside;
    for (int i = 0; i < si.hosts.count; i++) {
        si_host *host = si.hosts.items[i];
        if (host->key == key && host->world == world) return host;
    }
    return add_host(key, world, rank != NULL ? rank->index : -1);
}

void si_host_name(const si_host *host, char *text, size_t text_bytes)
{
    if (host->rank >= 0)
        snprintf(text, text_bytes, "rank %d", host->rank);
    else
        snprintf(text, text_bytes, "the host");
}

void zb_standin_join_hosts(void)
{
    zb_standin_lock();
    if (si.open) {
        si_host *host = si_host_find();
        join_side(host, 0);
        join_side(host, 1);
    }
    zb_standin_unlock();
}
