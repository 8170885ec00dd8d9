/* The memory of a snapshot: whatever is allocated before it is taken lies in the snapshot itself.
 *
 * The linker sends every call of malloc() and its kin here (--wrap). While the snapshot is made
 * memory comes from one array, block after block, and what is freed is used again for the same size;
 * later it comes from the C library, and a block of the array that is freed is forgotten.
 */
#include "snapshot.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HEAP_SIZE (5u << 20)
#define UNIT 16u /* of sizes and of alignment */
#define LISTED 4096u /* larger blocks are not used again */

struct block {
    size_t size; /* without this head */
    struct block *next; /* while it is free */
};

static _Alignas(4096) char heap[HEAP_SIZE];
static size_t used;
static struct block *freed[LISTED / UNIT + 1];
static int taking;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *at, size_t size);
void __real_free(void *at);

static int within(const void *at)
{
    return (uintptr_t)at - (uintptr_t)heap < HEAP_SIZE;
}

static void *carve(size_t size, size_t alignment)
{
    size_t at = (used + alignment - 1) & ~(alignment - 1);
    if (size > HEAP_SIZE || at > HEAP_SIZE - size) {
        fprintf(stderr, "heap.c: the snapshot needs more than HEAP_SIZE, %u bytes\n", HEAP_SIZE);
        exit(1);
    }
    used = at + size;
    return heap + at;
}

void *__wrap_malloc(size_t size)
{
    struct block *block;
    if (!taking)
        return __real_malloc(size);
    size = size ? (size + UNIT - 1) & ~(size_t)(UNIT - 1) : UNIT;
    if (size <= LISTED && freed[size / UNIT]) {
        block = freed[size / UNIT];
        freed[size / UNIT] = block->next;
    } else {
        block = carve(sizeof *block + size, UNIT);
        block->size = size;
    }
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
    if (!within(at))
        __real_free(at);
    else if (taking && block->size <= LISTED) {
        /* Nothing of what it held may differ between two builds. */
        memset(at, 0, block->size);
        block->next = freed[block->size / UNIT];
        freed[block->size / UNIT] = block;
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

static void *new_arena(void *context, size_t size)
{
    void *at;
    (void)context;
    if (taking)
        return carve(size, 4096);
    at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void free_arena(void *context, void *at, size_t size)
{
    (void)context;
    if (!within(at))
        munmap(at, size);
}

static PyObjectArenaAllocator arenas = {NULL, new_arena, free_arena};

void vmm_heap_open(void)
{
    taking = 1;
    PyObject_SetArenaAllocator(&arenas);
}

void vmm_heap_close(void)
{
    memset(freed, 0, sizeof freed);
    taking = 0;
}

char *vmm_heap_end(void)
{
    return heap + used;
}
