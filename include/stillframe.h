/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * stillframe.h - snapshots of named regions of memory, and of whole processes, from inside a program.
 *
 * A program opens a session, allocates its arrays as regions, and calls sf_snapshot where they are consistent: the call returns
 * when the memory is frozen, and a thread of the library stores it. Started again, the program finds its regions as they were:
 *
 *     sf_session *session;
 *     double *grid;
 *     struct sf_options options = SF_OPTIONS_INIT;
 *     options.store = "/data/store";
 *     if (sf_open("job", &options, NULL, &session) != SF_OK ||
 *         sf_region_alloc(session, "grid", bytes, (void **)&grid) != SF_OK) {
 *         fprintf(stderr, "%s\n", sf_error_message());
 *         exit(1);
 *     }
 *
 * Functions return a status: SF_OK is 0, and SF_ERR_* are stable numbers. sf_error_message then says in one line what failed,
 * why, and what to do about it. Arguments that make no sense are refused: NULL where a value is needed, handles that were freed
 * or are of another kind. Handles may be used by several threads at once, unless a function says otherwise. A child made by
 * fork must not use the handles of its parent. Link with: pkg-config --cflags --libs stillframe.
 */

#ifndef STILLFRAME_H
#define STILLFRAME_H

#include <stddef.h>
#include <stdint.h>

/* Initial values of structs that say their own size, so that they can grow. */
#define SF_OPTIONS_INIT { sizeof(struct sf_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
#define SF_HOOKS_INIT { sizeof(struct sf_hooks), 0, 0, 0, 0, 0 }
#define SF_WHOLE_INIT { sizeof(struct sf_whole), 0, 0, 0, 0, 0, 0, 0, 0 }

/**
 * What functions return. The numbers are stable; new ones may come.
 */
enum sf_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It worked.
     */
    SF_OK = 0,
    /**
     * A system call or a file operation failed.
     */
    SF_ERR_IO = 1,
    /**
     * The program holds what cannot be kept, or this machine lacks what is needed.
     */
    SF_ERR_REFUSED = 2,
    /**
     * The frame is damaged, truncated or of an unknown version.
     */
    SF_ERR_CORRUPT = 3,
    /**
     * There is no such frame, region or process.
     */
    SF_ERR_NOT_FOUND = 4,
    /**
     * The other program went away.
     */
    SF_ERR_TARGET_GONE = 5,
    /**
     * A snapshot is in flight; later it may work.
     */
    SF_ERR_BUSY = 6,
    /**
     * A privilege is missing; the message names it.
     */
    SF_ERR_PRIVILEGE = 7,
    /**
     * The arguments make no sense: NULL, a handle that is not live, a name that cannot be.
     */
    SF_ERR_USAGE = 8,
    /**
     * It was given up.
     */
    SF_ERR_CANCELLED = 9,
    /**
     * It was not done in time.
     */
    SF_ERR_TIMED_OUT = 10,
    /**
     * Another program holds the name; the message says which.
     */
    SF_ERR_HELD = 11,
    /**
     * The library has a mistake in it; the message says where.
     */
    SF_ERR_PANIC = 100,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum sf_status sf_status;
#else
typedef int32_t sf_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How memory is frozen.
 */
enum sf_method
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The best for each snapshot.
     */
    SF_METHOD_AUTO = 0,
    /**
     * A forked twin holds the pages.
     */
    SF_METHOD_FORK = 1,
    /**
     * The first write to a block copies it aside. Needs the right to use userfaultfd.
     */
    SF_METHOD_WRITE_PROTECT = 2,
    /**
     * What is stored is copied before sf_snapshot returns.
     */
    SF_METHOD_COPY = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum sf_method sf_method;
#else
typedef int32_t sf_method;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What becomes of a snapshot asked for while one is in flight.
 */
enum sf_in_flight
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * SF_ERR_BUSY.
     */
    SF_IN_FLIGHT_REFUSE = 0,
    /**
     * None is taken; the ticket says so (info.skipped).
     */
    SF_IN_FLIGHT_SKIP = 1,
    /**
     * It is frozen at once and stored after the other, for at most `queue` that wait.
     */
    SF_IN_FLIGHT_QUEUE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum sf_in_flight sf_in_flight;
#else
typedef int32_t sf_in_flight;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a session goes on from.
 */
enum sf_resume
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The newest intact snapshot, if there is one.
     */
    SF_RESUME_NEWEST = 0,
    /**
     * None.
     */
    SF_RESUME_FRESH = 1,
    /**
     * Snapshot number `version`.
     */
    SF_RESUME_VERSION = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum sf_resume sf_resume;
#else
typedef int32_t sf_resume;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Who keeps other threads from writing while memory is split off.
 */
enum sf_quiesce
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The program.
     */
    SF_QUIESCE_SAFE_POINT = 0,
    /**
     * A real-time signal stops every other thread for the instant.
     */
    SF_QUIESCE_SIGNAL = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum sf_quiesce sf_quiesce;
#else
typedef int32_t sf_quiesce;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How safe a snapshot is; each level includes those before it.
 */
enum sf_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The regions may be changed; the snapshot lives in memory.
     */
    SF_FROZEN = 0,
    /**
     * Written to a file, and no memory is held for it; not under its name yet.
     */
    SF_LOCAL = 1,
    /**
     * Synced to storage and listed under its number.
     */
    SF_STORED = 2,
    /**
     * Read back, every checksum right.
     */
    SF_VERIFIED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum sf_level sf_level;
#else
typedef int32_t sf_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Who returns from sf_checkpoint_self.
 */
enum sf_outcome
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The original, whose frame is safe.
     */
    SF_SAVED = 1,
    /**
     * The second instance, brought back from the frame.
     */
    SF_RESTORED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum sf_outcome sf_outcome;
#else
typedef int32_t sf_outcome;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A snapshot open for reading. Opaque.
 */
typedef struct sf_frame sf_frame;

/**
 * A session of this program on a store: its regions and their snapshots. Opaque.
 */
typedef struct sf_session sf_session;

/**
 * A snapshot on its way to the store. Opaque.
 */
typedef struct sf_ticket sf_ticket;

/**
 * A region of a snapshot.
 */
typedef struct sf_region {
    /**
     * Where it was in the program that wrote it.
     */
    uint64_t address;
    /**
     * Its length in bytes.
     */
    uint64_t len;
} sf_region;

/**
 * How a session is to be. Start from SF_OPTIONS_INIT, which sets `size`; zero stands for what is usual.
 *
 * Strings are copied by sf_open.
 */
typedef struct sf_options {
    /**
     * sizeof(struct sf_options).
     */
    uintptr_t size;
    /**
     * Directory of the store; NULL: $STILLFRAME_STORE, else /var/lib/stillframe for root, else the XDG state directory.
     */
    const char *store;
    /**
     * enum sf_method.
     */
    int32_t method;
    /**
     * enum sf_in_flight.
     */
    int32_t in_flight;
    /**
     * How many snapshots may wait with SF_IN_FLIGHT_QUEUE.
     */
    uint32_t queue;
    /**
     * enum sf_resume.
     */
    int32_t resume;
    /**
     * The snapshot of SF_RESUME_VERSION.
     */
    uint64_t version;
    /**
     * enum sf_quiesce.
     */
    int32_t quiesce;
    /**
     * Not 0: regions lie where they lay before, so that pointers inside them hold.
     */
    int32_t same_addresses;
    /**
     * Not 0: every snapshot is read back when it is stored.
     */
    int32_t verify;
    /**
     * How many snapshots stay in the store; 0: all.
     */
    uint32_t keep;
    /**
     * Seconds between snapshots, for sf_due; 0: only when asked for from outside.
     */
    double every;
    /**
     * Seconds until sf_should_exit says yes; 0: never.
     */
    double time_limit;
    /**
     * Most bytes of copies set aside; 0: 256 MiB.
     */
    uint64_t memory_limit;
    /**
     * Bytes that SF_METHOD_WRITE_PROTECT copies at the first write: 65536, 131072 or 262144; 0: 131072.
     */
    uint64_t block_size;
    /**
     * How many snapshots in a row hold only what changed, plus 1; 0: what is usual, 1: none.
     */
    uint32_t increments;
    /**
     * "none", "auto", "zstd" or "zstd:LEVEL"; NULL: "auto".
     */
    const char *compression;
    /**
     * Signals after which sf_should_exit says yes, instead of what they do else: names out of TERM, INT, HUP, USR1, USR2 and XCPU,
     * separated by commas. The program must have no handlers of its own for them. They do again what they did before when the
     * session is closed. NULL: none.
     */
    const char *exit_on;
    /**
     * Signals, in the same way, each of which makes a snapshot due (sf_due). NULL: none.
     */
    const char *snapshot_on;
    /**
     * With SF_RESUME_VERSION: the name that the snapshot has in the store; NULL: that of the session. Any number of programs can
     * start from one snapshot, each with a name of its own.
     */
    const char *origin;
} sf_options;

/**
 * What is known of a snapshot. Set `size` before it is handed in; a library that knows less fills in less.
 */
typedef struct sf_info {
    /**
     * sizeof(struct sf_info).
     */
    uintptr_t size;
    /**
     * Its number; 0 before SF_STORED.
     */
    uint64_t version;
    /**
     * enum sf_level.
     */
    int32_t level;
    /**
     * enum sf_method, never SF_METHOD_AUTO: what was picked.
     */
    int32_t method;
    /**
     * Not 0: none was taken, because one was in flight.
     */
    int32_t skipped;
    /**
     * How long sf_snapshot held the program up, in nanoseconds.
     */
    uint64_t pause_ns;
    /**
     * From there to SF_STORED, in nanoseconds; 0 before.
     */
    uint64_t stored_ns;
    /**
     * Bytes of regions that it covers.
     */
    uint64_t bytes;
    /**
     * Bytes of them that were read for it.
     */
    uint64_t changed_bytes;
    /**
     * Length of its file; 0 before SF_LOCAL.
     */
    uint64_t file_bytes;
    /**
     * Bytes copied aside so far.
     */
    uint64_t copied_bytes;
    /**
     * The most memory that copies took at one time.
     */
    uint64_t peak_copied_bytes;
} sf_info;

/**
 * Functions of the program. Start from SF_HOOKS_INIT; NULL stands for none. They must not throw, nor call back into the session.
 */
typedef struct sf_hooks {
    /**
     * sizeof(struct sf_hooks).
     */
    uintptr_t size;
    /**
     * Handed to each of them.
     */
    void *user;
    /**
     * Before memory is split off, on the thread that calls sf_snapshot: take locks. Anything but 0 calls the snapshot off.
     */
    int32_t (*quiesce)(void *user);
    /**
     * After it, on the same thread, if quiesce returned 0 or is NULL.
     */
    void (*resume)(void *user);
    /**
     * In sf_open, when the session goes on from the snapshot of that number.
     */
    void (*restored)(void *user, uint64_t version);
    /**
     * On the transfer thread, whenever a snapshot reaches a level.
     */
    void (*progress)(void *user, const struct sf_info *info);
} sf_hooks;

/**
 * How far a checkpoint or a restore is; counts are bytes of memory and files.
 */
typedef struct sf_progress {
    /**
     * sizeof(struct sf_progress) in the library; fields that it does not cover are not there.
     */
    uintptr_t size;
    /**
     * What is done.
     */
    uint64_t done;
    /**
     * What there is to do, as far as is known: 0 at first, and it grows where a running process writes.
     */
    uint64_t total;
    /**
     * Length of the frame so far; 0 in a restore.
     */
    uint64_t written;
    /**
     * Seconds since the beginning.
     */
    double seconds;
} sf_progress;

/**
 * How a whole process is to be framed or brought back. Start from SF_WHOLE_INIT, which sets `size`; zero stands for what is
 * usual. Nothing of it is kept after the call.
 */
typedef struct sf_whole {
    /**
     * sizeof(struct sf_whole).
     */
    uintptr_t size;
    /**
     * Directory of the store; NULL: as in struct sf_options.
     */
    const char *store;
    /**
     * Name of the frame; NULL: the name of the command.
     */
    const char *name;
    /**
     * More arguments of the stillframe command, such as "--compress", "none"; ends with NULL, and may be NULL.
     */
    const char *const *arguments;
    /**
     * Handed to each of the functions, which may be NULL, must not throw, and are called on the calling thread.
     */
    void *user;
    /**
     * sf_checkpoint_self: before the freeze. Anything but 0 calls it off.
     */
    int32_t (*before)(void *user);
    /**
     * sf_checkpoint_self: in the original, when the frame is safe or has failed.
     */
    void (*after)(void *user);
    /**
     * sf_checkpoint_self: in the second instance. Open connections, seed generators anew.
     */
    void (*restored)(void *user);
    /**
     * sf_checkpoint_pid and sf_restore: some twenty times a second. Anything but 0 gives it up.
     */
    int32_t (*progress)(void *user, const struct sf_progress *progress);
} sf_whole;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, "MAJOR.MINOR.PATCH".
 *
 * Never NULL; lives as long as the program. Any thread may call it.
 */
const char *sf_version(void);

/**
 * Opens snapshot number `version` of `name` for reading, or for 0 the newest of which every byte is intact. The program that
 * writes them may run meanwhile; what is read stays as it is.
 *
 * `store` is a directory; NULL: as in struct sf_options. The handle in `*frame` is the caller's, to be closed by
 * sf_frame_close. Any thread may use it, several at once.
 */
int32_t sf_frame_open(const char *store, const char *name, uint64_t version, struct sf_frame **frame);

/**
 * Closes a snapshot. NULL is allowed. No other thread may be using it.
 */
int32_t sf_frame_close(struct sf_frame *frame);

/**
 * The number of a snapshot. Any thread may call it.
 */
int32_t sf_frame_version(const struct sf_frame *frame, uint64_t *version);

/**
 * Where a region was and how long it is. SF_ERR_NOT_FOUND: there is none of that name. Any thread may call it.
 */
int32_t sf_frame_region(const struct sf_frame *frame, const char *name, struct sf_region *region);

/**
 * The name of region number `index`, counted from 0. `*len` is the room at `name` and becomes its length with the zero at its
 * end; `name` may be NULL to ask for the length alone. SF_ERR_NOT_FOUND: there are not so many. Any thread may call it.
 */
int32_t sf_frame_region_name(const struct sf_frame *frame, uintptr_t index, char *name, uintptr_t *len);

/**
 * Copies `len` bytes of a region from `offset` on to `bytes`; what was left out of the snapshot is zero. Every byte is checked
 * against its checksum. Any thread may call it, several at once.
 */
int32_t sf_frame_read(const struct sf_frame *frame, const char *name, uint64_t offset, void *bytes, uintptr_t len);

/**
 * The state of a snapshot. `*len` is the room at `state` and becomes its length, 0 if there is none; `state` may be NULL to ask
 * for the length alone. Any thread may call it.
 */
int32_t sf_frame_state(const struct sf_frame *frame, void *state, uintptr_t *len);

/**
 * A label of a snapshot. `*len` is the room at `value` and becomes its length with the zero at its end; `value` may be NULL to
 * ask for the length alone. SF_ERR_NOT_FOUND: there is no such label. Any thread may call it.
 */
int32_t sf_frame_label(const struct sf_frame *frame, const char *key, char *value, uintptr_t *len);

/**
 * What the last function that failed on this thread has to say, in one line; "" before any has.
 *
 * Never NULL. It belongs to the library and is valid until the next function fails on this thread. Functions that succeed
 * leave it alone. Any thread may call it, and sees its own.
 */
const char *sf_error_message(void);

/**
 * The status of the last function that failed on this thread; SF_OK before any has.
 *
 * Any thread may call it, and sees its own.
 */
int32_t sf_error_code(void);

/**
 * Opens a session named `name`, which is the name of its frames in the store. If the store has snapshots of that name, the
 * session goes on from the newest intact one (see sf_resume).
 *
 * `options` and `hooks` may be NULL for what is usual; they are copied. The handle in `*session` is the caller's, to be closed
 * by sf_close. Any thread may use it, several at once.
 *
 * SF_ERR_HELD: another program has a session of that name, which the message names. SF_ERR_CORRUPT: there are snapshots, and
 * none is intact.
 */
int32_t sf_open(const char *name, const struct sf_options *options, const struct sf_hooks *hooks, struct sf_session **session);

/**
 * Closes a session: waits until its snapshots in flight are stored (sf_cancel them to be quicker), then frees its handle and
 * the memory of its regions by sf_region_alloc. Tickets stay valid. No other thread may be using the session or its regions.
 *
 * The status is that of the last snapshot that failed and that nobody asked about; the session is closed in any case.
 */
int32_t sf_close(struct sf_session *session);

/**
 * The number of the snapshot that the session goes on from; 0 if it starts anew. Any thread may call it.
 */
int32_t sf_resumed(const struct sf_session *session, uint64_t *version);

/**
 * The state of the snapshot that the session goes on from. `*len` is the room at `state` and becomes its length, 0 if there is
 * none; `state` may be NULL to ask for the length alone. SF_ERR_USAGE: there is no room for it. Any thread may call it.
 */
int32_t sf_state(const struct sf_session *session, void *state, uintptr_t *len);

/**
 * Allocates a region of `len` bytes: what the snapshot holds that the session goes on from, else zeros. It is aligned to 2 MiB
 * where it is that long, and uses huge pages where the kernel has them.
 *
 * `*memory` belongs to the session: it is valid until sf_region_remove or sf_close. Any thread may call it.
 *
 * SF_ERR_USAGE: the name is taken, or the snapshot's region of that name has another length. SF_ERR_REFUSED: the same address
 * is wanted and taken.
 */
int32_t sf_region_alloc(struct sf_session *session, const char *name, uintptr_t len, void **memory);

/**
 * Adds `len` bytes of the program's own from `memory` on as a region. They keep their content; sf_region_load puts back that of
 * the snapshot.
 *
 * The memory stays the caller's, who keeps it mapped, readable and writable until sf_region_remove or sf_close. It must be
 * private: SF_ERR_REFUSED for shared mappings. Any thread may call it.
 */
int32_t sf_region_add(struct sf_session *session, const char *name, void *memory, uintptr_t len);

/**
 * Fills a region that was added from the snapshot that the session goes on from. `loaded` may be NULL; it becomes 1, or 0 if
 * there is no snapshot with such a region, and then the memory is left alone. No other thread may use the memory meanwhile.
 */
int32_t sf_region_load(struct sf_session *session, const char *name, int32_t *loaded);

/**
 * Leaves `len` bytes from `offset` of a region out of every later snapshot; they come back as zero, or as they are when they
 * are loaded into memory of the program's own. Any thread may call it.
 */
int32_t sf_region_exclude(struct sf_session *session, const char *name, uintptr_t offset, uintptr_t len);

/**
 * Takes a region out of every later snapshot, and frees its memory if it came from sf_region_alloc. To be called before memory
 * of the program's own goes away. Snapshots in flight keep their content; a write-protected one is waited for, until it has read
 * the memory. No other thread may use the memory meanwhile.
 */
int32_t sf_region_remove(struct sf_session *session,
                         const char *name);

/**
 * Whether it is time for a snapshot: 1 if the interval has passed or one was asked for from outside
 * (`stillframe checkpoint --name NAME`), and none is in flight; else, and for a handle that is not a live session, 0.
 *
 * Cheap enough for an inner loop. Any thread may call it.
 */
int32_t sf_due(const struct sf_session *session);

/**
 * Whether the program should take a last snapshot and exit: 1 if its time limit has passed or somebody asked for it from
 * outside; else, and for a handle that is not a live session, 0. Any thread may call it.
 */
int32_t sf_should_exit(const struct sf_session *session);

/**
 * Takes a snapshot of all regions, with `len` bytes of `state` beside them (NULL and 0 for none). Returns when memory is frozen;
 * it may be changed from then on. No other thread may write to a region meanwhile, unless SF_QUIESCE_SIGNAL stops them.
 *
 * `ticket` may be NULL; else the handle in `*ticket` is the caller's, to be freed by sf_ticket_free. Any thread may call it.
 *
 * SF_ERR_BUSY: one is in flight. SF_ERR_CANCELLED: the quiesce hook objects. What fails later is told by the ticket.
 */
int32_t sf_snapshot(struct sf_session *session,
                    const void *state,
                    uintptr_t len,
                    struct sf_ticket **ticket);

/**
 * The same with a label, which sf_frame_label reads back; both strings are copied, and may be NULL for none. As there, the
 * handle in `*ticket` is the caller's, and any thread may call it.
 */
int32_t sf_snapshot_labelled(struct sf_session *session,
                             const void *state,
                             uintptr_t len,
                             const char *key,
                             const char *value,
                             struct sf_ticket **ticket);

/**
 * Deletes all but the newest `keep` snapshots of the session's name; `keep` is at least 1. Any thread may call it.
 */
int32_t sf_retain(struct sf_session *session, uintptr_t keep);

/**
 * The numbers of the snapshots of `name`, the newest last. `*count` is the room at `versions`, in numbers, and becomes how many
 * there are; `versions` may be NULL to ask for that alone. They are listed, not checked: sf_frame_open with 0 finds the newest
 * intact one. SF_ERR_USAGE: there is no room for them.
 *
 * `store` is a directory; NULL: as in struct sf_options. Any thread may call it.
 */
int32_t sf_versions(const char *store, const char *name, uint64_t *versions, uintptr_t *count);

/**
 * What made the last snapshot fail that failed, for programs that keep no tickets: its status, with its message; SF_OK if none has
 * failed since the last such call. Any thread may call it.
 */
int32_t sf_take_failure(struct sf_session *session);

/**
 * Waits until a snapshot has reached `level` (enum sf_level), for `timeout_ms` milliseconds at most, or for as long as it takes
 * if that is negative. `info` may be NULL; else its `size` is set, and it is filled in.
 *
 * The status is that of the snapshot: what made it fail, SF_ERR_CANCELLED, SF_ERR_BUSY if it was skipped; SF_ERR_TIMED_OUT if
 * it takes longer, and then it goes on. Any thread may call it, several at once.
 */
int32_t sf_wait(const struct sf_ticket *ticket, int32_t level, int64_t timeout_ms, struct sf_info *info);

/**
 * A descriptor for event loops: readable when the snapshot has reached a level or failed; reading eight bytes resets it.
 *
 * `*fd` belongs to the ticket and is valid until sf_ticket_free. Any thread may call it.
 */
int32_t sf_ticket_fd(const struct sf_ticket *ticket, int32_t *fd);

/**
 * What is known now of a snapshot, in `*info`, whose `size` is set. Any thread may call it.
 */
int32_t sf_ticket_info(const struct sf_ticket *ticket, struct sf_info *info);

/**
 * Why its memory was frozen the way it was, in words. `*len` is the room at `text` and becomes its length with the zero at its end;
 * `text` may be NULL to ask for the length alone. Any thread may call it.
 */
int32_t sf_ticket_why(const struct sf_ticket *ticket,
                      char *text,
                      uintptr_t *len);

/**
 * Gives a snapshot up, if it is not stored yet; the ticket stays valid. Returns at once. Any thread may call it.
 */
int32_t sf_cancel(struct sf_ticket *ticket);

/**
 * Frees a ticket; the snapshot goes on. NULL is allowed. No other thread may be using the ticket's descriptor.
 */
int32_t sf_ticket_free(struct sf_ticket *ticket);

/**
 * Takes a frame of the calling process and all its descendants. Returns twice, as fork does: with SF_SAVED in `*outcome` when the
 * frame is safe, and with SF_RESTORED in each second instance when it is brought back. Other threads go on meanwhile, in both.
 *
 * `how` may be NULL for what is usual, and stays the caller's. Sessions may be open: what they have in flight is stored first,
 * and both instances go on with theirs; the second one's snapshots fail with SF_ERR_HELD as long as the original has the name.
 *
 * It needs the stillframe command ($STILLFRAME_COMMAND, else in $PATH) and what a checkpoint needs. One thread at a time may
 * call it.
 *
 * SF_ERR_CANCELLED: `before` calls it off. SF_ERR_REFUSED: the message is that of the command.
 */
int32_t sf_checkpoint_self(const struct sf_whole *how,
                           int32_t *outcome);

/**
 * Takes a frame of process `pid` and all its descendants, as the command does; the number of the frame goes to `*version`,
 * which may be NULL. `how` may be NULL for what is usual, and stays the caller's. Any thread may call it.
 *
 * SF_ERR_REFUSED: the message is that of the command. SF_ERR_CANCELLED: `progress` gave it up; the process runs on, and there is
 * no frame.
 */
int32_t sf_checkpoint_pid(int32_t pid,
                          const struct sf_whole *how,
                          uint64_t *version);

/**
 * Brings `frame` (NAME, NAME@VERSION or a path) back in a session of its own; its process id goes to `*pid`, which may be NULL.
 * `how` may be NULL for what is usual, and stays the caller's. Any thread may call it.
 *
 * SF_ERR_CANCELLED: `progress` gave it up, and nothing is left of the second instance. One that runs already by then stays, and
 * the call succeeds.
 */
int32_t sf_restore(const char *frame, const struct sf_whole *how, int32_t *pid);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* STILLFRAME_H */


