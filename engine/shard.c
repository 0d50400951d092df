/* What a rank optimizes, cut into tensors; see stage.h. */
#include <string.h>
#include <zerobit/memory.h>

#include "engine/state.h"

zb_status zb_engine_create_shard(zb_engine *e)
{
    const zb_layout *layout = &e->layout;
    zb_shard *shard = &e->shard;
    shard->numel = layout->rank_numel;
    shard->segment_count = layout->optimizer_tensors.count;
    shard->segments = zb_alloc_array((size_t)layout->optimizer_tensors.count, sizeof *shard->segments);
    if (shard->segments == NULL) return ZB_NO_MEMORY;
    for (int t = 0; t < layout->optimizer_tensors.count; t++) {
        const zb_extent extent = zb_layout_tensor(layout, &layout->optimizer_tensors, t, e->comm->rank);
        zb_segment *segment = &shard->segments[t];
        *segment = (zb_segment){ .group = extent.group };
        if (extent.numel == 0) continue;
        const zb_place place = e->stage->ops->place(e->stage, extent.group, extent.shard_offset);
        segment->shard_offset = extent.shard_offset;
        segment->numel = extent.numel;
        segment->param = place.param;
        segment->grad = place.grad;
    }
    return ZB_OK;
}

void zb_shard_destroy(zb_shard *shard)
{
    zb_free(shard->segments);
    memset(shard, 0, sizeof *shard);
}

zb_segment zb_shard_run(const zb_shard *shard, int *next)
{
    zb_segment run = shard->segments[(*next)++];
    for (; *next < shard->segment_count; ++*next) {
        const zb_segment *s = &shard->segments[*next];
        if (s->numel == 0) continue;
        if (run.numel == 0)
            run = *s;
        else if (s->group == run.group && s->shard_offset == run.shard_offset + run.numel)
            run.numel += s->numel;
        else
            break;
    }
    return run;
}
