/* The interpreter as it is once everything is imported: taken by the build, resumed at each start. */
#ifndef VMM_SNAPSHOT_H
#define VMM_SNAPSHOT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Which area of the heap a block is for, by the number of the call that allocates it: 0 is written to
 * by a start, 1 is read, 2 is neither, as is what has a larger number. With the bytes of the first
 * two, heads included. A file of the build (placing.py).
 */
#define VMM_AREAS 3
struct vmm_placing {
    uint32_t bytes[VMM_AREAS - 1], calls;
    unsigned char area[];
};

/* From here on, before the interpreter starts, memory is the snapshot's; then the process's own.
 * `placing` may be NULL. `bounds` are the heap's address and, as offsets in it, begin and end of what
 * is used of each area; the end is the last one's.
 */
void vmm_heap_open(const struct vmm_placing *placing);
void vmm_heap_close(void);
void vmm_heap_areas(uint64_t bounds[1 + 2 * VMM_AREAS]);

/* Whether this process began with a snapshot. */
int vmm_snapshot_is_taken(void);

/* So many ranges of pages may be listed that a start writes to. */
#define VMM_SNAPSHOT_RANGES 128

/* Write the snapshot of this process's interpreter to a file: its address, its length, the address
 * of that list, the heap's areas, the bytes. No Python code may run meanwhile. Returns 0, or -1 with errno.
 */
int vmm_snapshot_take(const char *path);

/* Get copies of the snapshot's pages that a start writes to, all at once. */
void vmm_snapshot_touch(void);

/* Make the interpreter of the snapshot this process's and this thread's. Returns 0, or -1. */
int vmm_snapshot_resume(void);

#endif
