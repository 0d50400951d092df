/* Collectives in stream order, each with the event that tells when it is finished; see comm.h. */
#include <zerobit/comm.h>
#include <zerobit/memory.h>

typedef struct zb_stream_work {
    uint64_t id;
    zb_stream *stream; /* that it runs on */
    zb_event *event;
    struct zb_stream_work *next;
} zb_stream_work;

/* One whose event belongs to the stream's device. */
static zb_status take(zb_stream_works *works, zb_stream *stream, zb_stream_work **work_p)
{
    zb_stream_work **at = &works->free;
    while (*at != NULL && (*at)->event->device != stream->device) at = &(*at)->next;
    zb_stream_work *found = *at;
    if (found != NULL) {
        *at = found->next;
    } else {
        if ((found = zb_alloc(sizeof *found)) == NULL) return ZB_NO_MEMORY;
        const zb_status status = zb_event_create(stream->device, "collective", &found->event);
        if (status != ZB_OK) {
            zb_free(found);
            return status;
        }
    }
    *work_p = found;
    return ZB_OK;
}

static void push(zb_stream_work **list, zb_stream_work *work)
{
    work->next = *list;
    *list = work;
}

zb_status zb_stream_works_record(zb_stream_works *works, zb_stream *stream, zb_work *work)
{
    zb_stream_work *made;
    ZB_TRY(take(works, stream, &made));
    const zb_status status = zb_event_record(made->event, stream);
    if (status != ZB_OK) {
        push(&works->free, made);
        return status;
    }
    made->id = ++works->count;
    made->stream = stream;
    push(&works->in_flight, made);
    *work = (zb_work){ .id = made->id, .handle = made };
    return ZB_OK;
}

zb_status zb_stream_works_wait(zb_stream_works *works, const char *name, const zb_work *work,
                               zb_stream *stream)
{
    zb_stream_work **at = &works->in_flight;
    while (*at != NULL && (*at != work->handle || (*at)->id != work->id)) at = &(*at)->next;
    zb_stream_work *found = *at;
    if (found == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: work %llu is not in flight here", name,
                       (unsigned long long)work->id);
    *at = found->next;
    push(&works->free, found);
    return stream != NULL ? zb_stream_wait_event(stream, found->event) : zb_stream_wait_idle(found->stream);
}

static void destroy_list(zb_stream_work *list)
{
    while (list != NULL) {
        zb_stream_work *next = list->next;
        zb_event_destroy(list->event);
        zb_free(list);
        list = next;
    }
}

void zb_stream_works_destroy(zb_stream_works *works)
{
    destroy_list(works->in_flight);
    destroy_list(works->free);
    *works = (zb_stream_works){ 0 };
}
