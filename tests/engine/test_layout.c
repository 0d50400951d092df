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
    struct CMUnitTest tests[COUNT(flat_cases) + COUNT(part_cases) + COUNT(refusals) + 4] = {
        cmocka_unit_test(cifar_sizes_are_the_nets),
        cmocka_unit_test(pieces_tile_every_trainable_element),
        cmocka_unit_test(frozen_parameters_have_a_place),
        cmocka_unit_test(out_of_memory_leaves_nothing),
    };
    size_t n = 4;
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
