/* The guest's side of a virtqueue: a driver that keeps the rules, or breaks them, by a seed.
 *
 * Everything comes from a seed and the number of the input, so one number brings an input back. A
 * thread sanitizer looks away: a guest may write whenever it likes, that is what is tried here.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define GUEST static __attribute__((unused, no_sanitize("thread", "address", "undefined")))

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, PIECES = 24, CHAINS = 8, REGIONS = 2 };
/* Below are rings and indirect tables; a driver that keeps the rules has its buffers above. */
enum { TABLES_GPA = 0x20000, DATA_GPA = 0x40000, DATA_END = 0xf0000 };
enum { NEIGHBOUR = 0x10000, PATTERN = 0xc7 };

/* hostile: one choice of so many breaks the rules; 0: none. */
typedef struct { uint64_t state; uint32_t hostile; uint64_t cursor; } Dice;
typedef struct { uint64_t address; uint32_t length; uint16_t flags, next; } GuestDescriptor;
typedef struct { uint64_t gpa, size; char *hva; } GuestRegion;
typedef struct { uint64_t address; uint32_t length; int writable; } Piece;
/* count < 0: this chain is to be refused. */
typedef struct { uint16_t head; int count; uint32_t readable, writable; Piece pieces[64]; } Chain;
typedef struct {
    GuestRegion ram[REGIONS];
    volatile GuestDescriptor *table;
    volatile uint16_t *avail, *used;
    uint16_t size, next_avail;
    int indirect, free;
} GuestRing;

GUEST uint64_t dice_mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
GUEST void dice_begin(Dice *d, uint64_t seed, uint64_t index) {
    d->state = dice_mix(dice_mix(seed) ^ index * 0x9e3779b97f4a7c15u) | 1;
    d->hostile = 0;
    d->cursor = DATA_GPA;
}
GUEST uint64_t dice_roll(Dice *d) {
    d->state ^= d->state >> 12;
    d->state ^= d->state << 25;
    d->state ^= d->state >> 27;
    return d->state * 0x2545f4914f6cdd1du;
}
GUEST uint32_t dice_below(Dice *d, uint32_t limit) {
    return (uint32_t)((dice_roll(d) >> 32) * limit >> 32);
}
GUEST int dice_bad(Dice *d) { return d->hostile && dice_below(d, d->hostile) == 0; }
/* Half of the inputs keep all rules, so that a device which refuses too much is seen as well. */
GUEST void dice_choose_hostility(Dice *d) {
    static const uint32_t kinds[8] = {0, 0, 0, 0, 3, 12, 40, 150};
    d->hostile = kinds[dice_below(d, 8)];
}

/* What the device has told, and what the driver tells it, while both run. */
GUEST int guest_look(const int *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
GUEST void guest_put(char *to, const void *from, size_t length) {
    for (size_t i = 0; i < length; i++)
        ((volatile char *)to)[i] = ((const char *)from)[i];
}

/* Host address of [gpa, gpa + length), NULL unless it lies in one region. */
GUEST char *guest_at(const GuestRing *ring, uint64_t gpa, uint64_t length) {
    for (int i = 0; i < REGIONS; i++) {
        uint64_t offset = gpa - ring->ram[i].gpa;
        if (gpa >= ring->ram[i].gpa && offset <= ring->ram[i].size
            && length <= ring->ram[i].size - offset && length)
            return ring->ram[i].hva + offset;
    }
    return NULL;
}
/* Behind the first region something that may not change, behind the second nothing at all. */
GUEST int guest_neighbours(const GuestRing *ring) {
    memset(ring->ram[0].hva + ring->ram[0].size, PATTERN, NEIGHBOUR);
    return mprotect(ring->ram[1].hva + ring->ram[1].size, NEIGHBOUR, PROT_NONE);
}
GUEST int guest_neighbour_unhurt(const GuestRing *ring, size_t bytes) {
    const char *here = ring->ram[0].hva + ring->ram[0].size;
    for (size_t i = 0; i < bytes; i++)
        if (here[i] != (char)PATTERN)
            return 0;
    return 1;
}
GUEST void guest_neighbours_go(const GuestRing *ring) {
    for (int i = 0; i < REGIONS; i++)
        munmap(ring->ram[i].hva + ring->ram[i].size, NEIGHBOUR);
}

GUEST uint16_t guest_used(const GuestRing *ring) {
    return __atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE);
}

/* A place for `length` bytes that no other piece has; or one that no driver would give. */
GUEST uint64_t guest_place(Dice *d, const GuestRing *ring, uint32_t length) {
    uint64_t end = ring->ram[dice_below(d, 2)].size, found = d->cursor;
    if (dice_bad(d))
        switch (dice_below(d, 6)) {
        case 0: return dice_roll(d);
        case 1: return ring->ram[0].size - dice_below(d, length + 8);
        case 2: return ring->ram[1].gpa + end - dice_below(d, length + 8);
        case 3: return ring->ram[0].size + dice_below(d, 0x2000) - 0x1000;
        case 4: return 0 - (uint64_t)dice_below(d, length + 8);
        default: return dice_below(d, DATA_GPA);
        }
    d->cursor += length + dice_below(d, 64);
    if (d->cursor >= DATA_END)
        found = DATA_GPA, d->cursor = DATA_GPA + length;
    return found;
}
GUEST uint32_t guest_length(Dice *d, uint32_t usual) {
    static const uint32_t odd[8] = {0, 1, 0xffffffff, 0x80000000, 0x7ffff000, 0x100000, 65537, 15};
    return dice_bad(d) ? (dice_below(d, 2) ? odd[dice_below(d, 8)] : usual + 1) : usual;
}

GUEST void guest_describe(Dice *d, volatile GuestDescriptor *at, const Piece *piece, int last,
                          uint16_t next) {
    uint16_t flags = (piece->writable ? WRITE : 0) | (last ? 0 : NEXT);
    at->address = piece->address;
    at->length = piece->length;
    at->flags = dice_bad(d) ? (uint16_t)dice_below(d, 8) : flags;
    at->next = dice_bad(d) ? (uint16_t)(dice_roll(d) >> (dice_below(d, 2) * 12)) : next;
}
/* Lays a chain down and puts it into the available ring; 0 when the table has no room for it. */
GUEST int guest_add(Dice *d, GuestRing *ring, const Piece *pieces, int count) {
    int inside = ring->indirect && dice_below(d, 4) == 0, first = ring->free;
    int needed = inside ? 1 : count;
    if (first + needed > ring->size || count > ring->size)
        return 0;
    ring->free += needed;
    if (inside) {
        uint64_t gpa = TABLES_GPA + 0x400 * (uint64_t)(first % 64);
        volatile GuestDescriptor *table = (void *)guest_at(ring, gpa, 16 * PIECES);
        for (int i = 0; i < count; i++)
            guest_describe(d, &table[i], &pieces[i], i == count - 1, i + 1);
        Piece whole = {dice_bad(d) ? guest_place(d, ring, 16) : gpa, 16 * count, 0};
        whole.length = guest_length(d, whole.length);
        guest_describe(d, &ring->table[first], &whole, 1, 0);
        ring->table[first].flags |= INDIRECT;
    } else {
        for (int i = 0; i < count; i++)
            guest_describe(d, &ring->table[first + i], &pieces[i], i == count - 1, first + i + 1);
    }
    ring->avail[2 + (ring->next_avail & (ring->size - 1))] =
        dice_bad(d) ? (uint16_t)dice_below(d, 2 * ring->size) : first;
    ring->next_avail++;
    return 1;
}
GUEST void guest_show(Dice *d, GuestRing *ring) {
    uint16_t index = dice_bad(d) ? (uint16_t)dice_roll(d) : ring->next_avail;
    ring->avail[0] = dice_bad(d) ? (uint16_t)dice_roll(d) : dice_below(d, 2);
    ring->avail[2 + ring->size] = (uint16_t)(ring->next_avail - dice_below(d, 3));
    __atomic_store_n(&ring->avail[1], index, __ATOMIC_RELEASE);
}

/* What virtio 1.2, 2.7 says of the chain at `position`: read on its own, not by the device's code.
 * -1: to be refused. `moves` becomes 1 when what the device writes could change rings or tables.
 */
GUEST int guest_read_chain(const GuestRing *ring, uint16_t position, Chain *chain, int *moves) {
    uint16_t head = ring->avail[2 + position % ring->size];
    volatile GuestDescriptor *table = ring->table, *one;
    uint32_t entries = ring->size, steps = 0, at = head;
    int seen_writable = 0;
    chain->head = head;
    chain->readable = chain->writable = 0;
    chain->count = -1;
    if (head >= ring->size)
        return -1;
    one = &table[head];
    if (one->flags & INDIRECT) {
        if (!ring->indirect || one->flags & NEXT || !one->length || one->length % 16
            || one->length / 16 > 32768)
            return -1;
        table = (void *)guest_at(ring, one->address, one->length);
        if (!table)
            return -1;
        /* A table where the device may write could be another one when it is read. */
        if (one->address < TABLES_GPA || one->address + one->length > DATA_GPA)
            *moves = 1;
        entries = one->length / 16;
        at = 0;
    }
    int count = 0;
    for (;; at = one->next) {
        if (at >= entries || steps++ == ring->size)
            return -1;
        one = &table[at];
        if (one->flags & INDIRECT)
            return -1;
        seen_writable |= one->flags & WRITE;
        if (seen_writable && !(one->flags & WRITE))
            return -1;
        if (one->length) {
            if (!guest_at(ring, one->address, one->length))
                return -1;
            if (count == 64)
                return -1;
            chain->pieces[count++] = (Piece){one->address, one->length, !!(one->flags & WRITE)};
            *(one->flags & WRITE ? &chain->writable : &chain->readable) += one->length;
            if (one->flags & WRITE && (one->address < DATA_GPA || one->address >= ring->ram[1].gpa))
                *moves = 1;
        }
        if (!(one->flags & NEXT))
            break;
    }
    return chain->count = count;
}
