/* Who owns what: recorded partitions, and what must hold for any sizes, world and stage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>

#include "engine/layout.h"
#include "tests/engine/models.h"

enum { WORLD_MAX = 17, NUMEL_MAX = 200 };

static zb_partition partition_of(const zb_model *model, int stage, int world, int rank)
{
    zb_partition partition;
    if (zb_partition_create(&(zb_partition_options){ model, stage, world, rank, 0, NULL }, &partition) !=
        ZB_OK)
        fail_msg("%s", zb_error_message());
    return partition;
}

/* --- stages 1 and 2: recorded from DeepSpeed --- */

#define CIFAR                                                                                                \
    {                                                                                                        \
        10, { 450, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10 }, 0                                          \
    }

static const struct flat_case {
    const char *name;
    sizes sizes;
    int world;
    size_t padded, part;
    size_t first_offset[8]; /* per rank: where its first piece begins within its parameter */
    size_t padding[8];      /* per rank */
    unsigned owners[10];    /* per tensor: set of ranks */
} flat_cases[] = {
    { "3 5 4 7 on 1", { 4, { 3, 5, 4, 7 }, 0 }, 1, 20, 20, { 0 }, { 1 }, { 1, 1, 1, 1 } },
    { "3 5 4 7 on 2", { 4, { 3, 5, 4, 7 }, 0 }, 2, 20, 10, { 0, 2 }, { 0, 1 }, { 1, 1, 3, 2 } },
    { "3 5 4 7 on 3", { 4, { 3, 5, 4, 7 }, 0 }, 3, 24, 8, { 0, 0, 4 }, { 0, 0, 5 }, { 1, 1, 2, 6 } },
    { "3 5 4 7 on 4", { 4, { 3, 5, 4, 7 }, 0 }, 4, 24, 6, { 0, 3, 0, 6 }, { 0, 0, 0, 5 }, { 1, 3, 2, 12 } },
    { "1 1 on 2: a rank of padding only", { 2, { 1, 1 }, 0 }, 2, 4, 2, { 0 }, { 0, 2 }, { 1, 1 } },
    { "1 1 on 4: three such ranks", { 2, { 1, 1 }, 0 }, 4, 8, 2, { 0 }, { 0, 2, 2, 2 }, { 1, 1 } },
    { "10 on 2", { 1, { 10 }, 0 }, 2, 12, 6, { 0, 6 }, { 0, 2 }, { 3 } },
    { "10 on 3", { 1, { 10 }, 0 }, 3, 12, 4, { 0, 4, 8 }, { 0, 0, 2 }, { 7 } },
    { "10 on 4: padding over two ranks", { 1, { 10 }, 0 }, 4, 16, 4, { 0, 4, 8 }, { 0, 0, 2, 4 }, { 7 } },
    { "CIFAR net on 1", CIFAR, 1, 62006, 62006, { 0 }, { 0 }, { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 } },
    { "CIFAR net on 2", CIFAR, 2, 62008, 31004, { 0, 28132 }, { 0, 2 }, { 1, 1, 1, 1, 3, 2, 2, 2, 2, 2 } },
    { "CIFAR net on 3",
      CIFAR,
      3,
      62010,
      20670,
      { 0, 17798, 38468 },
      { 0, 0, 4 },
      { 1, 1, 1, 1, 7, 4, 4, 4, 4, 4 } },
    { "CIFAR net on 4",
      CIFAR,
      4,
      62008,
      15502,
      { 0, 12630, 28132, 43634 },
      { 0, 0, 0, 2 },
      { 1, 1, 1, 1, 15, 8, 8, 8, 8, 8 } },
    { "CIFAR net on 8",
      CIFAR,
      8,
      62016,
      7752,
      { 0, 4880, 12632, 20384, 28136, 35888, 43640, 3272 },
      { 0, 0, 0, 0, 0, 0, 0, 10 },
      { 1, 1, 1, 1, 127, 64, 192, 128, 128, 128 } },
};

static void check_flat(void **state)
{
    const struct flat_case *c = *state;
    zb_model *model = sizes_model(&c->sizes);
    for (int stage = 1; stage <= 2; stage++) {
        unsigned owners[SIZES_MAX] = { 0 };
        for (int rank = 0; rank < c->world; rank++) {
            zb_partition p = partition_of(model, stage, c->world, rank);
            assert_int_equal(p.numel, model->param_numel);
            assert_int_equal(p.padded_numel, c->padded);
            assert_int_equal(p.rank_numel, c->part);
            assert_int_equal(p.padding, c->padding[rank]);
            if (p.piece_count > 0) assert_int_equal(p.pieces[0].param_offset, c->first_offset[rank]);
            for (size_t i = 0; i < p.piece_count; i++) owners[p.pieces[i].param] |= 1u << rank;
            zb_partition_destroy(&p);
        }
        for (int i = 0; i < c->sizes.count; i++) assert_int_equal(owners[i], c->owners[i]);
    }
    zb_model_destroy(model);
}

static void cifar_sizes_are_the_nets(void **state)
{
    (void)state;
    static const sizes cifar = CIFAR;
    zb_model *model;
    assert_int_equal(zb_model_open("cifar10-net", &model), ZB_OK);
    assert_int_equal(model->param_count, cifar.count);
    for (int i = 0; i < cifar.count; i++) assert_int_equal(model->params[i].numel, cifar.numel[i]);
    zb_model_destroy(model);
}

/* --- stage 3: recorded from DeepSpeed --- */

static const struct part_case {
    const char *name;
    size_t numel;
    int world;
    size_t part;
    size_t own[4]; /* per rank: real elements */
} part_cases[] = {
    { "10 on 3", 10, 3, 4, { 4, 4, 2 } },
    { "4 on 3: the last rank owns none", 4, 3, 2, { 2, 2, 0 } },
    { "5 on 4: one short, one empty", 5, 4, 2, { 2, 2, 1, 0 } },
    { "1 on 4", 1, 4, 1, { 1, 0, 0, 0 } },
    { "8 on 4: no padding", 8, 4, 2, { 2, 2, 2, 2 } },
    { "7 on 1", 7, 1, 7, { 7 } },
};

static void check_part(void **state)
{
    const struct part_case *c = *state;
    zb_model *model = sizes_model(&(sizes){ 2, { c->numel, c->numel }, 0 });
    for (int rank = 0; rank < c->world; rank++) {
        zb_partition p = partition_of(model, 3, c->world, rank);
        assert_int_equal(p.rank_numel, 2 * c->part);
        assert_int_equal(p.padded_numel, 2 * c->part * (size_t)c->world);
        assert_int_equal(p.padding, 2 * (c->part - c->own[rank]));
        assert_int_equal(p.piece_count, c->own[rank] > 0 ? 2 : 0);
        for (size_t i = 0; i < p.piece_count; i++) {
            assert_int_equal(p.pieces[i].param, i);
            assert_int_equal(p.pieces[i].param_offset, (size_t)rank * c->part);
            assert_int_equal(p.pieces[i].numel, c->own[rank]);
            assert_int_equal(p.pieces[i].flat_offset, (size_t)rank * 2 * c->part + i * c->part);
        }
        zb_partition_destroy(&p);
    }
    zb_model_destroy(model);
}

/* --- what holds for all --- */

static sizes random_sizes(uint64_t *random)
{
    sizes s = { .count = (int)random_below(random, 9) };
    for (int i = 0; i < s.count; i++) {
        uint32_t shape = random_below(random, 4);
        s.numel[i] = shape < 2 ? shape : random_below(random, shape == 2 ? 8 : NUMEL_MAX);
        if (random_below(random, 4) == 0) s.frozen |= 1u << i;
    }
    return s;
}

static size_t trainable_before(const zb_model *model, int param)
{
    size_t numel = 0;
    for (int p = 0; p < param; p++)
        if (model->params[p].requires_grad) numel += model->params[p].numel;
    return numel;
}

static void check_pieces(const zb_model *model, int stage, int rank, const zb_partition *p,
                         unsigned char cover[SIZES_MAX][NUMEL_MAX])
{
    size_t begin = stage == 0 ? 0 : (size_t)rank * p->rank_numel, live = 0, flat_next = begin;
    for (size_t i = 0; i < p->piece_count; i++) {
        const zb_piece *piece = &p->pieces[i];
        assert_true(model->params[piece->param].requires_grad);
        assert_true(piece->numel > 0);
        assert_true(piece->param_offset + piece->numel <= model->params[piece->param].numel);
        assert_true(piece->flat_offset >= flat_next); /* ascending, and none overlaps the one before */
        if (stage < 3)
            assert_int_equal(piece->flat_offset, trainable_before(model, piece->param) + piece->param_offset);
        for (size_t e = 0; e < piece->numel; e++) cover[piece->param][piece->param_offset + e]++;
        flat_next = piece->flat_offset + piece->numel;
        live += piece->numel;
    }
    assert_true(flat_next <= begin + p->rank_numel);
    assert_int_equal(live + p->padding, p->rank_numel);
}

static void check_tiling(const zb_model *model, int stage, int world)
{
    unsigned char cover[SIZES_MAX][NUMEL_MAX] = { { 0 } };
    size_t numel = trainable_before(model, model->param_count), padding = 0;
    for (int rank = 0; rank < world; rank++) {
        zb_partition p = partition_of(model, stage, world, rank);
        assert_int_equal(p.numel, numel);
        assert_int_equal(p.padded_numel, p.rank_numel * (stage == 0 ? 1u : (size_t)world));
        check_pieces(model, stage, rank, &p, cover);
        padding += p.padding;
        if (stage == 1 || stage == 2) assert_int_equal(p.rank_numel % 2, 0);
        if (rank == world - 1) assert_int_equal(padding, stage == 0 ? 0 : p.padded_numel - numel);
        zb_partition_destroy(&p);
    }
    for (int p = 0; p < model->param_count; p++)
        for (size_t e = 0; e < model->params[p].numel; e++)
            assert_int_equal(cover[p][e], !model->params[p].requires_grad ? 0 : stage == 0 ? world : 1);
}

static void pieces_tile_every_trainable_element(void **state)
{
    (void)state;
    uint64_t random = 1;
    for (int round = 0; round < 60; round++) {
        sizes s = random_sizes(&random);
        zb_model *model = sizes_model(&s);
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int world = 1; world <= WORLD_MAX; world++) check_tiling(model, stage, world);
        zb_model_destroy(model);
    }
}

/* Frozen parameters are in no partition, but somebody must hold them: each rank all of them, or at stage 3
 * its part. */
static void frozen_parameters_have_a_place(void **state)
{
    (void)state;
    uint64_t random = 2;
    for (int round = 0; round < 200; round++) {
        sizes s = random_sizes(&random);
        int stage = (int)random_below(&random, ZB_STAGE_COUNT), world = 1 + (int)random_below(&random, 17);
        zb_model *model = sizes_model(&s);
        zb_layout layout;
        assert_int_equal(
            zb_layout_create(&(zb_layout_options){ .model = model, .stage = stage, .world_size = world },
                             &layout),
            ZB_OK);
        for (int p = 0; p < model->param_count; p++) {
            if (model->params[p].requires_grad) continue;
            size_t next = 0;
            for (int rank = 0; rank < world; rank++) {
                zb_slice slice = zb_layout_slice(&layout, p, rank);
                if (stage < 3) {
                    assert_int_equal(slice.first, 0);
                    assert_int_equal(slice.numel, model->params[p].numel);
                } else {
                    assert_int_equal(slice.first, next);
                }
                next = slice.first + slice.numel;
                assert_true(slice.shard_offset + slice.numel <= layout.frozen_rank_numel);
            }
            assert_int_equal(next, model->params[p].numel);
        }
        zb_layout_destroy(&layout);
        zb_model_destroy(model);
    }
}

/* --- round robin, groups and tensors --- */

/* Recorded from DeepSpeed: 3 5 4 7 on two ranks are laid out 0, 2, 1, 3. */
static void round_robin_is_as_recorded(void **state)
{
    (void)state;
    zb_model *model = sizes_model(&(sizes){ 4, { 3, 5, 4, 7 }, 0 });
    static const struct {
        int rank, param;
        size_t first, numel;
    } want[] = { { 0, 0, 0, 3 }, { 0, 2, 0, 4 }, { 0, 1, 0, 3 }, { 1, 1, 3, 2 }, { 1, 3, 0, 7 } };
    size_t seen = 0;
    for (int rank = 0; rank < 2; rank++) {
        zb_partition p;
        assert_int_equal(zb_partition_create(&(zb_partition_options){ model, 2, 2, rank, 1, NULL }, &p),
                         ZB_OK);
        for (size_t i = 0; i < p.piece_count; i++, seen++) {
            assert_int_equal(want[seen].rank, rank);
            assert_int_equal(p.pieces[i].param, want[seen].param);
            assert_int_equal(p.pieces[i].param_offset, want[seen].first);
            assert_int_equal(p.pieces[i].numel, want[seen].numel);
        }
        zb_partition_destroy(&p);
    }
    assert_int_equal(seen, COUNT(want));
    zb_model_destroy(model);
}

static const struct round_case {
    const char *name;
    sizes sizes;
    int stage, world;
    int order[SIZES_MAX];
} round_cases[] = {
    { "round robin on three", { 5, { 1, 2, 3, 4, 5 }, 0 }, 1, 3, { 0, 3, 1, 4, 2 } },
    { "round robin, more ranks than parameters", { 3, { 1, 2, 3 }, 0 }, 2, 7, { 0, 1, 2 } },
    { "round robin counts empty parameters, and no frozen ones",
      { 5, { 1, 0, 3, 4, 5 }, 4 },
      2,
      2,
      { 0, 3, 4 } },
    { "round robin is nothing at stage 0", { 3, { 1, 2, 3 }, 0 }, 0, 2, { 0, 1, 2 } },
    { "round robin is nothing at stage 3", { 3, { 1, 2, 3 }, 0 }, 3, 2, { 0, 1, 2 } },
};

static void check_round(void **state)
{
    const struct round_case *c = *state;
    zb_model *model = sizes_model(&c->sizes);
    zb_layout layout;
    const zb_layout_options options = {
        .model = model, .stage = c->stage, .world_size = c->world, .round_robin = 1
    };
    assert_int_equal(zb_layout_create(&options, &layout), ZB_OK);
    for (int i = 0; i < layout.order_count; i++) assert_int_equal(layout.by_offset[i], c->order[i]);
    zb_layout_destroy(&layout);
    zb_model_destroy(model);
}

/* 3 and 4 in group 0, 5 and 7 in group 1; two ranks. */
static void groups_are_partitioned_on_their_own(void **state)
{
    (void)state;
    static const int group_of[] = { 0, 1, 0, 1 };
    zb_model *model = sizes_model(&(sizes){ 4, { 3, 5, 4, 7 }, 0 });
    zb_layout layout;
    zb_layout_options options = { .model = model, .stage = 1, .world_size = 2, .group_of = group_of };
    assert_int_equal(zb_layout_create(&options, &layout), ZB_OK);
    assert_int_equal(layout.group_count, 2);
    assert_int_equal(layout.groups[0].padded_numel, 8);
    assert_int_equal(layout.groups[1].padded_numel, 12);
    assert_int_equal(layout.groups[1].flat_begin, 8);
    assert_int_equal(layout.groups[1].shard_begin, 4);
    assert_int_equal(layout.rank_numel, 10);
    const zb_slice of_2 = zb_layout_slice(&layout, 2, 1), of_3 = zb_layout_slice(&layout, 3, 1);
    assert_true(of_2.first == 1 && of_2.numel == 3 && of_2.shard_offset == 0);
    assert_true(of_3.first == 1 && of_3.numel == 6 && of_3.shard_offset == 4);
    assert_int_equal(zb_layout_flat(&layout, 1, 1, of_3.shard_offset), 14);
    zb_layout_destroy(&layout);
    zb_model_destroy(model);
}

/* Recorded from DeepSpeed: 16 4 24 4 10 3 on two ranks, cut at 10. */
static const struct sub_group_case {
    const char *name;
    uint64_t limit;
    int group_of[6], count, of[6];
    size_t end[6];
} sub_group_cases[] = {
    { "sub-groups as recorded", 10, { 0 }, 3, { 0, 0, 1, 2, 2, 2 }, { 10, 22, 31 } },
    { "sub-groups: all in one", 1000000000, { 0 }, 1, { 0, 0, 0, 0, 0, 0 }, { 31 } },
    { "sub-groups: exactly all", 31, { 0 }, 1, { 0, 0, 0, 0, 0, 0 }, { 31 } },
    { "sub-groups: every parameter", 1, { 0 }, 6, { 0, 1, 2, 3, 4, 5 }, { 8, 10, 22, 24, 29, 31 } },
    { "sub-groups end with their group",
      10,
      { 1, 1, 0, 0, 1, 0 },
      4,
      { 2, 2, 0, 1, 3, 1 },
      { 12, 16, 26, 31 } },
};

static void check_sub_groups(void **state)
{
    const struct sub_group_case *c = *state;
    zb_model *model = sizes_model(&(sizes){ 6, { 16, 4, 24, 4, 10, 3 }, 0 });
    zb_layout layout;
    const zb_layout_options options = { .model = model,
                                        .stage = 3,
                                        .world_size = 2,
                                        .group_of = c->group_of,
                                        .norm_tensors = ZB_TENSORS_SUB_GROUPS,
                                        .sub_group_numel = c->limit };
    assert_int_equal(zb_layout_create(&options, &layout), ZB_OK);
    assert_int_equal(layout.norm_tensors.count, c->count);
    assert_memory_equal(layout.norm_tensors.of, c->of, sizeof c->of);
    for (int t = 0; t < c->count; t++) {
        const zb_extent extent = zb_layout_tensor(&layout, &layout.norm_tensors, t, 1);
        assert_int_equal(extent.shard_offset, t > 0 ? c->end[t - 1] : 0);
        assert_int_equal(extent.shard_offset + extent.numel, c->end[t]);
    }
    zb_layout_destroy(&layout);
    zb_model_destroy(model);
}

static zb_tensors random_tensors(int stage, uint64_t *random)
{
    static const zb_tensors flat[] = { ZB_TENSORS_PARAMETERS, ZB_TENSORS_GROUPS, ZB_TENSORS_PARTITIONS };
    if (stage == 3) return random_below(random, 2) ? ZB_TENSORS_SUB_GROUPS : ZB_TENSORS_PARAMETERS;
    return flat[random_below(random, COUNT(flat))];
}

/* Every slice lies in its parameter's tensor, and tensors do not meet; in the flat space parameters do not
 * either, and padding is at the ends of groups. */
static void check_tensors(const zb_layout *l, int rank)
{
    unsigned char shard[SIZES_MAX * NUMEL_MAX * 2] = { 0 };
    assert_true(l->rank_numel <= sizeof shard);
    for (int t = 0; t < l->optimizer_tensors.count; t++) {
        const zb_extent extent = zb_layout_tensor(l, &l->optimizer_tensors, t, rank);
        assert_true(extent.shard_offset + extent.numel <= l->rank_numel);
        for (size_t e = 0; e < extent.numel; e++) {
            assert_int_equal(shard[extent.shard_offset + e], 0);
            shard[extent.shard_offset + e] = (unsigned char)(t + 1);
        }
    }
    for (int i = 0; i < l->order_count; i++) {
        const int param = l->by_offset[i];
        const zb_slice slice = zb_layout_slice(l, param, rank);
        for (size_t e = 0; e < slice.numel; e++)
            assert_int_equal(shard[slice.shard_offset + e], l->optimizer_tensors.of[param] + 1);
        if (i > 0) assert_true(l->offset[param] >= l->offset[l->by_offset[i - 1]]);
    }
}

static void tensors_tile_the_shard(void **state)
{
    (void)state;
    uint64_t random = 8;
    for (int round = 0; round < 2000; round++) {
        sizes s = random_sizes(&random);
        int stage = (int)random_below(&random, ZB_STAGE_COUNT), world = 1 + (int)random_below(&random, 9);
        int group_of[SIZES_MAX];
        for (int p = 0; p < s.count; p++) group_of[p] = (int)random_below(&random, 3);
        zb_model *model = sizes_model(&s);
        zb_layout layout;
        const zb_layout_options options = { .model = model,
                                            .stage = stage,
                                            .world_size = world,
                                            .group_of = group_of,
                                            .round_robin = (int)random_below(&random, 2),
                                            .optimizer_tensors = random_tensors(stage, &random),
                                            .sub_group_numel = random_below(&random, 60) };
        assert_int_equal(zb_layout_create(&options, &layout), ZB_OK);
        for (int rank = 0; rank < world; rank++) check_tensors(&layout, rank);
        zb_layout_destroy(&layout);
        zb_model_destroy(model);
    }
}

/* --- refusals --- */

static const struct refusal {
    const char *name;
    int stage, world, rank;
    const char *message;
} refusals[] = {
    { "stage below", -1, 2, 0, "stage is -1, want 0 to 3" },
    { "stage above", 4, 2, 0, "stage is 4, want 0 to 3" },
    { "no ranks", 1, 0, 0, "world size is 0, want at least 1" },
    { "a negative world", 1, -3, 0, "world size is -3, want at least 1" },
    { "rank below", 1, 2, -1, "rank is -1, want 0 to 1" },
    { "rank above", 3, 2, 2, "rank is 2, want 0 to 1" },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    zb_model *model = sizes_model(&(sizes){ 1, { 3 }, 0 });
    uint64_t live = zb_alloc_get_stats().live;
    zb_partition partition = { .numel = 99 };
    assert_int_equal(zb_partition_create(
                         &(zb_partition_options){ model, c->stage, c->world, c->rank, 0, NULL }, &partition),
                     ZB_INVALID_ARGUMENT);
    assert_message_has(c->message);
    assert_int_equal(partition.numel, 99);
    assert_int_equal(zb_alloc_get_stats().live, live);
    zb_model_destroy(model);
}

static void out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    zb_model *model = sizes_model(&(sizes){ 3, { 3, 5, 4 }, 0 });
    uint64_t live = zb_alloc_get_stats().live;
    for (int n = 0;; n++) {
        zb_partition partition = { .numel = 99 };
        zb_alloc_fail_at(n);
        zb_status status = zb_partition_create(&(zb_partition_options){ model, 2, 2, 1, 0, NULL },
                                               &partition);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        if (!fired) {
            assert_int_equal(status, ZB_OK);
            assert_true(n > 0);
            zb_partition_destroy(&partition);
            break;
        }
        assert_int_equal(status, ZB_NO_MEMORY);
        assert_int_equal(partition.numel, 99);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    assert_int_equal(zb_alloc_get_stats().live, live);
    zb_model_destroy(model);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(flat_cases) + COUNT(part_cases) + COUNT(refusals) + COUNT(round_cases) +
                            COUNT(sub_group_cases) + 7] = {
        cmocka_unit_test(cifar_sizes_are_the_nets),
        cmocka_unit_test(pieces_tile_every_trainable_element),
        cmocka_unit_test(frozen_parameters_have_a_place),
        cmocka_unit_test(round_robin_is_as_recorded),
        cmocka_unit_test(groups_are_partitioned_on_their_own),
        cmocka_unit_test(tensors_tile_the_shard),
        cmocka_unit_test(out_of_memory_leaves_nothing),
    };
    size_t n = 7;
    for (size_t i = 0; i < COUNT(round_cases); i++)
        tests[n++] = (struct CMUnitTest){ round_cases[i].name, check_round, NULL, NULL,
                                          (void *)&round_cases[i] };
    for (size_t i = 0; i < COUNT(sub_group_cases); i++)
        tests[n++] = (struct CMUnitTest){ sub_group_cases[i].name, check_sub_groups, NULL, NULL,
                                          (void *)&sub_group_cases[i] };
    for (size_t i = 0; i < COUNT(flat_cases); i++)
        tests[n++] = (struct CMUnitTest){ flat_cases[i].name, check_flat, NULL, NULL,
                                          (void *)&flat_cases[i] };
    for (size_t i = 0; i < COUNT(part_cases); i++)
        tests[n++] = (struct CMUnitTest){ part_cases[i].name, check_part, NULL, NULL,
                                          (void *)&part_cases[i] };
    for (size_t i = 0; i < COUNT(refusals); i++)
        tests[n++] = (struct CMUnitTest){ refusals[i].name, check_refusal, NULL, NULL, (void *)&refusals[i] };
    return cmocka_run_group_tests_name("layout", tests, NULL, NULL);
}
