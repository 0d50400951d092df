/* The texts of a world's reports: where each rank is, what it waits for, and who waits for whom in a cycle.
 */
#include "sim/world.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { POSITIONS_MAX = 10, RANK_LIST_BYTES = 120, CYCLE_SHOWN_MAX = 6 };

/* --- text --- */

typedef struct text {
    char *at;
    size_t left; /* with the terminator */
} text;

static text text_over(char *buffer, size_t bytes)
{
    buffer[0] = '\0';
    return (text){ buffer, bytes };
}

__attribute__((format(printf, 2, 3))) static void append(text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int used = vsnprintf(t->at, t->left, format, args);
    va_end(args);
    size_t taken = used < 0 ? 0 : (size_t)used < t->left ? (size_t)used : t->left - 1;
    t->at += taken;
    t->left -= taken;
}

/* "rank 3", "ranks 0-3,5": give it ranks one by one, then end it. */
typedef struct rank_list {
    char buffer[RANK_LIST_BYTES];
    text out;
    int count, first, last; /* of the range under way */
    int cut;
} rank_list;

static void rank_list_start(rank_list *list)
{
    memset(list, 0, sizeof *list);
    list->out = text_over(list->buffer, sizeof list->buffer);
}

static void rank_list_flush(rank_list *list)
{
    if (list->count == 0 || list->cut) return;
    if (list->out.left < 24) {
        append(&list->out, ",...");
        list->cut = 1;
        return;
    }
    const char *comma = list->buffer[0] ? "," : "";
    if (list->first == list->last)
        append(&list->out, "%s%d", comma, list->first);
    else
        append(&list->out, "%s%d-%d", comma, list->first, list->last);
}

static void rank_list_add(rank_list *list, int rank)
{
    if (list->count > 0 && rank == list->last + 1) {
        list->last = rank;
    } else {
        rank_list_flush(list);
        list->first = list->last = rank;
    }
    list->count++;
}

static void append_rank_list(text *t, rank_list *list)
{
    rank_list_flush(list);
    append(t, "rank%s %s", list->count == 1 ? "" : "s", list->buffer);
}

/* --- places --- */

static void append_call(text *t, const sim_place *place)
{
    if (place->kind == ZB_COLLECTIVE_SEND)
        append(t, "send to rank %d of %s", place->peer, place->group->name);
    else if (place->kind == ZB_COLLECTIVE_RECV)
        append(t, "recv from rank %d of %s", place->peer, place->group->name);
    else
        append(t, "%s #%llu of %s", zb_call_kind_name(place->kind), (unsigned long long)place->sequence,
               place->group->name);
    if (place->what != NULL) append(t, " (%s)", place->what);
    if (place->file != NULL) append(t, " at %s:%d", zb_call_short_path(place->file), place->line);
}

void sim_describe_place(const sim_place *place, char *buffer, size_t buffer_bytes)
{
    text t = text_over(buffer, buffer_bytes);
    append_call(&t, place);
}

static sim_place place_of(const sim_part *part)
{
    return (sim_place){ .group = part->op->group,
                        .kind = (int)part->call.kind,
                        .peer = part->call.root,
                        .sequence = part->op->sequence,
                        .what = part->call.what,
                        .file = part->call.file,
                        .line = part->call.line };
}

void sim_describe_part(const sim_part *part, char *buffer, size_t buffer_bytes)
{
    sim_place place = place_of(part);
    sim_describe_place(&place, buffer, buffer_bytes);
}

sim_rank *sim_part_rank(const sim_op *op, int index)
{
    int member = !op->pair ? index : index == 0 ? op->src : op->dst;
    return op->group->members[member].rank;
}

static int same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

/* Whether one line can speak for both ranks. */
static int same_position(const sim_rank *a, const sim_rank *b)
{
    int a_runs = a->state == SIM_RUNNABLE || a->state == SIM_RUNNING;
    int b_runs = b->state == SIM_RUNNABLE || b->state == SIM_RUNNING;
    if (a_runs != b_runs || (!a_runs && a->state != b->state)) return 0;
    if (a->state == SIM_FINISHED) return 1;
    if (a->state == SIM_WAITING) {
        const sim_op *x = a->waits_in->op, *y = b->waits_in->op;
        if (x != y && !(x->pair && y->pair && x->complete == y->complete)) return 0;
    }
    sim_place p = a->state == SIM_WAITING ? place_of(a->waits_in) : a->place;
    sim_place q = b->state == SIM_WAITING ? place_of(b->waits_in) : b->place;
    return p.group == q.group && p.kind == q.kind && p.peer == q.peer && p.sequence == q.sequence &&
           p.line == q.line && same_text(p.what, q.what) && same_text(p.file, q.file);
}

static void append_missing(text *t, const sim_op *op)
{
    rank_list missing;
    rank_list_start(&missing);
    for (int i = 0; i < op->part_count; i++)
        if (!op->parts[i].arrived) rank_list_add(&missing, sim_part_rank(op, i)->index);
    append(t, " for ");
    append_rank_list(t, &missing);
}

static void append_position(text *t, const sim_rank *rank)
{
    if (rank->state == SIM_FINISHED) {
        append(t, "finished");
    } else if (rank->state == SIM_WAITING) {
        sim_place place = place_of(rank->waits_in);
        append(t, "waits in ");
        append_call(t, &place);
        if (!rank->waits_in->op->complete) append_missing(t, rank->waits_in->op);
    } else if (rank->place.group == NULL) {
        append(t, "runs, before its first operation");
    } else {
        append(t, "runs, came last to ");
        append_call(t, &rank->place);
    }
}

/* Every rank's position, ranks with the same one together. */
static void append_positions(text *t, const zb_sim *sim)
{
    const sim_rank *speakers[POSITIONS_MAX];
    int speaker_count = 0, not_shown = 0;
    for (int i = 0; i < sim->world_size; i++) {
        int s = 0;
        while (s < speaker_count && !same_position(speakers[s], &sim->ranks[i])) s++;
        if (s < speaker_count) continue;
        if (s < POSITIONS_MAX)
            speakers[speaker_count++] = &sim->ranks[i];
        else
            not_shown++;
    }
    for (int s = 0; s < speaker_count; s++) {
        rank_list list;
        rank_list_start(&list);
        for (int i = speakers[s]->index; i < sim->world_size; i++)
            if (same_position(speakers[s], &sim->ranks[i])) rank_list_add(&list, i);
        append(t, "\n  ");
        append_rank_list(t, &list);
        append(t, ": ");
        append_position(t, speakers[s]);
    }
    if (not_shown > 0) append(t, "\n  and %d ranks in other places", not_shown);
}

/* --- mismatch --- */

void sim_report_mismatch(const sim_part *first, const sim_part *second, const char *difference, char *buffer,
                         size_t buffer_bytes)
{
    const sim_part *parts[2] = { first, second };
    text t = text_over(buffer, buffer_bytes);
    append(&t, "ranks called different collectives: %s", difference);
    for (int i = 0; i < 2; i++) {
        sim_place place = place_of(parts[i]);
        append(&t, "\n  rank %d called ", parts[i]->member->rank->index);
        append_call(&t, &place);
    }
    append(&t, "\npositions:");
    append_positions(&t, first->member->rank->sim);
}

/* --- deadlock --- */

enum { UNSEEN, ON_PATH, DONE };

/* The next rank that waits, too, and that `rank` waits for; NULL when there are no more. */
static sim_rank *next_awaited(sim_rank *rank)
{
    const sim_op *op = rank->waits_in->op;
    while (rank->cycle_part < op->part_count) {
        int i = rank->cycle_part++;
        if (op->parts[i].arrived) continue;
        sim_rank *awaited = sim_part_rank(op, i);
        if (awaited->state == SIM_WAITING && awaited->cycle_color != DONE) return awaited;
    }
    return NULL;
}

/* Depth first from `rank`. Returns a rank of a cycle, whose cycle_parent links lead around it backwards; or
 * NULL. */
static sim_rank *search_cycle(sim_rank *rank)
{
    rank->cycle_parent = NULL;
    while (rank != NULL) {
        rank->cycle_color = ON_PATH;
        sim_rank *awaited = next_awaited(rank);
        if (awaited == NULL) {
            rank->cycle_color = DONE;
            rank = rank->cycle_parent;
        } else if (awaited->cycle_color == ON_PATH) {
            awaited->cycle_parent = rank;
            return awaited;
        } else {
            awaited->cycle_parent = rank;
            rank = awaited;
        }
    }
    return NULL;
}

static sim_rank *find_cycle(zb_sim *sim)
{
    for (int i = 0; i < sim->world_size; i++) {
        sim->ranks[i].cycle_color = UNSEEN;
        sim->ranks[i].cycle_part = 0;
    }
    for (int i = 0; i < sim->world_size; i++) {
        if (sim->ranks[i].state != SIM_WAITING || sim->ranks[i].cycle_color != UNSEEN) continue;
        sim_rank *found = search_cycle(&sim->ranks[i]);
        if (found != NULL) return found;
    }
    return NULL;
}

static void append_cycle(text *t, sim_rank *start)
{
    /* Parent links run against the waits: turn them round first. */
    sim_rank *next = start, *rank = start->cycle_parent;
    while (rank != start) {
        sim_rank *parent = rank->cycle_parent;
        rank->cycle_parent = next;
        next = rank;
        rank = parent;
    }
    start->cycle_parent = next;

    append(t, "\ncycle: rank %d", start->index);
    int shown = 0;
    rank = start;
    do {
        sim_place place = place_of(rank->waits_in);
        if (shown++ == CYCLE_SHOWN_MAX) {
            append(t, " ... and back to rank %d", start->index);
            return;
        }
        rank = rank->cycle_parent;
        append(t, " waits in ");
        append_call(t, &place);
        append(t, " for rank %d%s", rank->index, rank == start ? "" : ", which");
    } while (rank != start);
}

void sim_report_deadlock(zb_sim *sim, char *buffer, size_t buffer_bytes)
{
    text t = text_over(buffer, buffer_bytes);
    append(&t, "no rank can go on:");
    append_positions(&t, sim);
    sim_rank *cycle = find_cycle(sim);
    if (cycle != NULL) append_cycle(&t, cycle);
}
