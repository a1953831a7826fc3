/* A heat solver in C that survives kill -9: started again with the same store, it goes on where its newest snapshot was, and
 * ends with the same bits as if nothing had happened.
 *
 *     cc -std=c11 -o heat heat.c $(pkg-config --cflags --libs stillframe) && ./heat STORE [STEPS [SIZE [BETWEEN]]]
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stillframe.h"

/* What has to be known besides the grid; part of the same snapshot. */
struct state {
    uint64_t step;
    uint64_t seed;
};

static void must(int status, const char *what)
{
    if (status != SF_OK) {
        fprintf(stderr, "%s: %s\n", what, sf_error_message());
        exit(1);
    }
}

static void advance(const double *from, double *to, size_t size)
{
    for (size_t row = 1; row + 1 < size; row++)
        for (size_t at = row * size + 1; at + 1 < (row + 1) * size; at++)
            to[at] = from[at] + 0.1 * (from[at - 1] + from[at + 1] + from[at - size] + from[at + size] - 4.0 * from[at]);
}

static void spark(struct state *state, double *cells, size_t count)
{
    state->seed = state->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    cells[(state->seed >> 33) % count] += 100.0;
}

static uint64_t checksum(const double *cells, size_t count)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    for (size_t at = 0; at < count; at++) {
        uint64_t bits;
        memcpy(&bits, &cells[at], sizeof bits);
        sum = (sum ^ bits) * UINT64_C(0x100000001b3);
    }
    return sum;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: heat STORE [STEPS [SIZE [BETWEEN]]]\n");
        return 2;
    }
    uint64_t steps = argc > 2 ? strtoull(argv[2], NULL, 10) : 2000;
    size_t size = argc > 3 ? strtoul(argv[3], NULL, 10) : 256;
    uint64_t between = argc > 4 ? strtoull(argv[4], NULL, 10) : 100;
    if (size < 3 || between == 0)
        return 2;

    struct sf_options options = SF_OPTIONS_INIT;
    options.store = argv[1];
    options.keep = 3;
    options.exit_on = "TERM";
    sf_session *session;
    sf_ticket *last = NULL;
    must(sf_open("heat", &options, NULL, &session), "cannot open a session");
    void *memory;
    must(sf_region_alloc(session, "grid", 2 * size * size * sizeof(double), &memory), "cannot allocate the grid");
    double *grid = memory;
    struct state state = {0, 1};
    size_t len = sizeof state;
    uint64_t version;
    must(sf_resumed(session, &version), "cannot ask what it resumes from");
    if (version != 0) {
        must(sf_state(session, &state, &len), "cannot read the state");
        printf("goes on from heat@%" PRIu64 " at step %" PRIu64 "\n", version, state.step);
    } else {
        printf("starts at step 0\n");
    }

    while (state.step < steps) {
        double *from = grid + (state.step % 2) * size * size, *to = grid + (1 - state.step % 2) * size * size;
        if (state.step % 64 == 0)
            spark(&state, from, size * size);
        advance(from, to, size);
        state.step++;
        if (state.step % between == 0 || sf_due(session)) {
            sf_ticket *ticket;
            int status = sf_snapshot(session, &state, sizeof state, &ticket);
            if (status != SF_ERR_BUSY) { /* the one before is still being written: the next time, then */
                must(status, "cannot take a snapshot");
                sf_ticket_free(last);
                last = ticket;
            }
        }
        if (sf_should_exit(session)) {
            sf_ticket *ticket;
            if (last != NULL)
                sf_wait(last, SF_STORED, -1, NULL); /* should it fail, there is still this one */
            must(sf_snapshot(session, &state, sizeof state, &ticket), "cannot take the last snapshot");
            must(sf_wait(ticket, SF_STORED, -1, NULL), "the last snapshot failed");
            must(sf_ticket_free(ticket), "cannot free a ticket");
            printf("asked to exit at step %" PRIu64 "\n", state.step);
            break;
        }
    }
    if (state.step >= steps)
        printf("step %" PRIu64 " checksum %016" PRIx64 "\n", state.step, checksum(grid, 2 * size * size));
    must(sf_ticket_free(last), "cannot free a ticket");
    must(sf_close(session), "a snapshot failed");
    return 0;
}
