/* The driver's side of a virtio-blk queue at full speed (virtio 1.2, 2.7 and 5.2): it keeps `depth`
 * requests under way in guest RAM, rings only where the device asks for it, and waits for the
 * interrupt's eventfd as a vCPU does in HLT: KVM looks for it for `halt_poll` seconds (its module's
 * halt_poll_ns) before the thread sleeps. A shared object: the worker runs in the same process. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, SECTOR = 512, PIECES_MAX = 64, DEPTH_MAX = 128 };

struct desc { uint64_t address; uint32_t length; uint16_t flags, next; };
struct used_entry { uint32_t id, length; };
struct rig {
    char *ram;                   /* of gpa 0 */
    uint64_t desc_gpa, driver_gpa, device_gpa, slots_gpa, data_gpa;
    uint64_t bytes, seed;        /* of the disk; of the places */
    uint32_t block, piece, depth, size, writes, sequential;
    int kick, call;
    double seconds, halt_poll;
    uint16_t avail, seen;        /* kept between two calls */
    /* Results. */
    uint64_t done, errors, kicks, sleeps;
    double took;
};
/* A request's own place in RAM: the indirect table, the header and the status. */
struct slot { struct desc table[PIECES_MAX + 2]; uint32_t kind, reserved; uint64_t sector;
              uint8_t status, pad[7]; };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint64_t place(struct rig *r) {
    uint64_t blocks = r->bytes / r->block;
    if (r->sequential) return r->seed++ % blocks * (r->block / SECTOR);
    r->seed = r->seed * 6364136223846793005u + 1442695040888963407u;
    return (r->seed >> 20) % blocks * (r->block / SECTOR);
}

static void prepare(struct rig *r, uint32_t n) {
    uint64_t at = r->slots_gpa + n * sizeof(struct slot);
    struct slot *s = (struct slot *)(r->ram + at);
    uint32_t pieces = r->block / r->piece, i;
    struct desc *first = (struct desc *)(r->ram + r->desc_gpa) + n;
    s->table[0] = (struct desc){at + offsetof(struct slot, kind), 16, NEXT, 1};
    for (i = 0; i < pieces; i++)
        s->table[i + 1] = (struct desc){r->data_gpa + (uint64_t)n * r->block + i * r->piece,
                                        r->piece, NEXT | (r->writes ? 0 : WRITE), i + 2};
    s->table[i + 1] = (struct desc){at + offsetof(struct slot, status), 1, WRITE, 0};
    *first = (struct desc){at, (pieces + 2) * sizeof(struct desc), INDIRECT, 0};
}

static void publish(struct rig *r, uint32_t n) {
    struct slot *s = (struct slot *)(r->ram + r->slots_gpa) + n;
    uint16_t *avail = (uint16_t *)(r->ram + r->driver_gpa);
    s->kind = r->writes;
    s->sector = place(r);
    s->status = 0xff;
    avail[2 + r->avail % r->size] = n;
    __atomic_store_n(&avail[1], ++r->avail, __ATOMIC_RELEASE);
}

static void ring(struct rig *r, uint16_t old) {
    uint16_t *event = (uint16_t *)(r->ram + r->device_gpa + 4 + 8 * r->size);
    uint64_t one = 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((uint16_t)(r->avail - __atomic_load_n(event, __ATOMIC_RELAXED) - 1)
        < (uint16_t)(r->avail - old)) {
        r->kicks++;
        if (write(r->kick, &one, sizeof one) < 0) r->errors++;
    }
}

static int arrived(struct rig *r) {
    uint16_t *used = (uint16_t *)(r->ram + r->device_gpa);
    return __atomic_load_n(&used[1], __ATOMIC_ACQUIRE) != r->seen;
}

static int polled(struct rig *r) {
    double end;
    if (!r->halt_poll) return 0;
    end = now() + r->halt_poll;
    do {
        if (arrived(r)) return 1;
        __builtin_ia32_pause();
    } while (now() < end);
    return 0;
}

static void await(struct rig *r) {
    uint16_t *event = (uint16_t *)(r->ram + r->driver_gpa) + 2 + r->size;
    uint64_t value;
    while (!arrived(r)) {
        __atomic_store_n(event, r->seen, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (arrived(r) || polled(r)) return;
        r->sleeps++;
        if (read(r->call, &value, sizeof value) < 0) r->errors++;
    }
}

/* Takes what is done; with `again`, each slot starts another request. */
static uint32_t reap(struct rig *r, int again) {
    uint16_t old = r->avail;
    uint32_t count = 0;
    while (arrived(r)) {
        struct used_entry *e = (struct used_entry *)(r->ram + r->device_gpa + 4);
        uint32_t n = e[r->seen % r->size].id;
        r->seen++;
        count++;
        if (((struct slot *)(r->ram + r->slots_gpa))[n].status) r->errors++;
        if (again) publish(r, n);
    }
    if (again && count) ring(r, old);
    return count;
}

size_t rig_slot_bytes(void) { return sizeof(struct slot); }

void rig_run(struct rig *r) {
    double began = now(), end = began + r->seconds;
    uint16_t old = r->avail;
    uint32_t n, left = r->depth;
    r->done = r->errors = r->kicks = r->sleeps = 0;
    for (n = 0; n < r->depth; n++) { prepare(r, n); publish(r, n); }
    ring(r, old);
    while (now() < end) { await(r); r->done += reap(r, 1); }
    while (left) { await(r); n = reap(r, 0); r->done += n; left -= n; }
    r->took = now() - began;
}
