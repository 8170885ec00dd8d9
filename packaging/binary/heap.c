/* The memory of a snapshot: whatever is allocated before it is taken lies in the snapshot itself.
 *
 * The linker sends every call of malloc() and its kin here (--wrap). While the snapshot is made
 * memory comes from one array, block after block, and what is freed is used again for the same size;
 * later it comes from the C library, and a block of the array that is freed is forgotten.
 *
 * Blocks that a start writes to lie together at the begin, so that few pages have to be copied, then
 * those that it only reads, so that few have to be mapped: the build tells which, by the numbers of
 * the calls that allocate them (placing.py). Python's objects are blocks of their own for that; its
 * own allocator, which packs them by size, serves later.
 */
#include "snapshot.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HEAP_SIZE (6u << 20)
#define UNIT 16u /* of sizes and of alignment */
#define LISTED 4096u /* larger blocks are not used again */

struct block {
    uint32_t size; /* without this head */
    uint32_t number; /* of the call that allocated it */
    struct block *next; /* while it is free */
};

/* Of blocks that a start writes to, that it reads, and of the others: offsets in the heap. */
static struct area {
    uint32_t begin, used, end;
    struct block *freed[LISTED / UNIT + 1];
} areas[VMM_AREAS];
#define OTHERS (&areas[VMM_AREAS - 1])

static _Alignas(4096) char heap[HEAP_SIZE];
static int taking;
static uint32_t calls;
static const struct vmm_placing *told;
static PyMemAllocatorEx pythons[2];
static const PyMemAllocatorDomain domains[2] = {PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *at, size_t size);
void __real_free(void *at);

static int within(const void *at)
{
    return (uintptr_t)at - (uintptr_t)heap < HEAP_SIZE;
}

static struct area *area_of(const struct block *block)
{
    uint32_t at = (uint32_t)((const char *)block - heap);
    struct area *area = areas;
    while (at >= area->end)
        area++;
    return area;
}

/* Where a block of the next call belongs; where it would not fit, among the others. */
static struct area *area_for(size_t size)
{
    uint32_t number = calls++;
    struct area *area = told && number < told->calls && told->area[number] < VMM_AREAS
                            ? &areas[told->area[number]]
                            : OTHERS;
    if (size <= LISTED && area->freed[size / UNIT])
        return area;
    return size + sizeof(struct block) <= area->end - area->used ? area : OTHERS;
}

static struct block *carve(struct area *area, size_t size)
{
    struct block *block = (struct block *)(heap + area->used);
    if (size > HEAP_SIZE || sizeof *block + size > area->end - area->used) {
        fprintf(stderr, "heap.c: the snapshot needs more than HEAP_SIZE, %u bytes\n", HEAP_SIZE);
        exit(1);
    }
    area->used += sizeof *block + size;
    block->size = size;
    return block;
}

void *__wrap_malloc(size_t size)
{
    struct block *block;
    struct area *area;
    if (!taking)
        return __real_malloc(size);
    size = size ? (size + UNIT - 1) & ~(size_t)(UNIT - 1) : UNIT;
    area = area_for(size);
    if (size <= LISTED && area->freed[size / UNIT]) {
        block = area->freed[size / UNIT];
        area->freed[size / UNIT] = block->next;
        block->next = NULL;
    } else {
        block = carve(area, size);
    }
    block->number = calls - 1;
    return block + 1;
}

void *__wrap_calloc(size_t count, size_t size)
{
    void *at;
    if (!taking)
        return __real_calloc(count, size);
    if (size && count > SIZE_MAX / size)
        return NULL;
    at = __wrap_malloc(count * size);
    return memset(at, 0, count * size);
}

void __wrap_free(void *at)
{
    struct block *block = (struct block *)at - 1;
    if (!within(at)) {
        __real_free(at);
    } else if (taking && block->size <= LISTED) {
        struct area *area = area_of(block);
        /* Nothing of what it held may differ between two builds. */
        memset(at, 0, block->size);
        block->next = area->freed[block->size / UNIT];
        area->freed[block->size / UNIT] = block;
    }
}

void *__wrap_realloc(void *at, size_t size)
{
    size_t old = within(at) ? ((struct block *)at - 1)->size : 0;
    void *moved;
    if (at && !old)
        return __real_realloc(at, size);
    if (size && size <= old)
        return at;
    moved = __wrap_malloc(size);
    if (moved && at) {
        memcpy(moved, at, old < size ? old : size);
        __wrap_free(at);
    }
    return moved;
}

/* Stacks of Python's frames; later also what its own allocator hands out. */
static void *new_arena(void *context, size_t size)
{
    void *at;
    (void)context;
    if (taking)
        return __wrap_malloc(size);
    at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void free_arena(void *context, void *at, size_t size)
{
    (void)context;
    if (within(at))
        __wrap_free(at);
    else
        munmap(at, size);
}

static PyObjectArenaAllocator stacks = {NULL, new_arena, free_arena};

static uint32_t area_bytes(const struct vmm_placing *placing, int n, uint32_t left)
{
    if (n == VMM_AREAS - 1)
        return left;
    return !placing ? 0 : placing->bytes[n] < left ? placing->bytes[n] : left;
}

void vmm_heap_open(const struct vmm_placing *placing)
{
    uint32_t at = 0;
    for (int n = 0; n < VMM_AREAS; n++) {
        uint32_t bytes = area_bytes(placing, n, HEAP_SIZE - at);
        areas[n].begin = areas[n].used = at;
        areas[n].end = at += bytes;
    }
    for (int n = 0; n < 2; n++)
        PyMem_GetAllocator(domains[n], &pythons[n]);
    PyObject_SetArenaAllocator(&stacks);
    told = placing;
    taking = 1;
}

void vmm_heap_close(void)
{
    for (int n = 0; n < VMM_AREAS; n++)
        memset(areas[n].freed, 0, sizeof areas[n].freed);
    for (int n = 0; n < 2; n++)
        PyMem_SetAllocator(domains[n], &pythons[n]);
    told = NULL;
    taking = 0;
}

void vmm_heap_areas(uint64_t bounds[1 + 2 * VMM_AREAS])
{
    bounds[0] = (uintptr_t)heap;
    for (int n = 0; n < VMM_AREAS; n++) {
        bounds[1 + 2 * n] = areas[n].begin;
        bounds[2 + 2 * n] = areas[n].used;
    }
}
