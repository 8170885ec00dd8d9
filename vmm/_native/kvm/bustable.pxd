"""The table of a bus: what looks something up takes no lock and writes no line of another's.

A table never changes once it can be seen: whoever changes a bus puts a new one in its place. A
reader says in a line of its own which table it looks at, so that nobody frees it meanwhile; old
tables wait for the next change that finds them unread (hazard pointers, Michael 2004). Static C of
the module that includes it, which is bus.pyx alone: the readers' lines are of all buses together.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #define VMM_READERS 1024
    struct vmm_range { uint64_t start, length; void *target; };
    /* First what stands in front of devices, `covers` of them, then the devices; each ascending. */
    struct vmm_table { struct vmm_table *next; int covers, count; struct vmm_range ranges[]; };
    struct vmm_reader { struct vmm_table *table; } __attribute__((aligned(64)));
    static struct vmm_reader vmm_readers[VMM_READERS];
    static int vmm_readers_used, vmm_readers_given;
    static __thread int vmm_reader_place = -1;

    /* Takes a free line, the thread's own one of last time as a rule, and says the table in it. */
    static struct vmm_reader *vmm_read_begin(struct vmm_table **current, struct vmm_table *table) {
        int place = vmm_reader_place, used;
        if (place < 0)
            place = __atomic_fetch_add(&vmm_readers_given, 1, __ATOMIC_RELAXED) & (VMM_READERS - 1);
        for (;; place = (place + 1) & (VMM_READERS - 1)) {
            struct vmm_reader *reader = &vmm_readers[place];
            struct vmm_table *none = NULL, *now;
            /* Before the line is used: who frees a table looks at no lines beyond. */
            used = __atomic_load_n(&vmm_readers_used, __ATOMIC_SEQ_CST);
            while (used <= place && !__atomic_compare_exchange_n(
                       &vmm_readers_used, &used, place + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
            if (!__atomic_compare_exchange_n(&reader->table, &none, table, 0, __ATOMIC_SEQ_CST,
                                             __ATOMIC_SEQ_CST))
                continue;
            vmm_reader_place = place;
            /* Only a table that is current after it was said is surely not freed. */
            while ((now = __atomic_load_n(current, __ATOMIC_SEQ_CST)) != table) {
                table = now;
                __atomic_store_n(&reader->table, table, __ATOMIC_SEQ_CST);
            }
            return reader;
        }
    }
    static void *vmm_find(struct vmm_range *ranges, int high, uint64_t address, uint32_t size,
                          uint64_t *offset) {
        int low = 0, middle;
        while (low < high) {
            middle = (low + high) / 2;
            if (ranges[middle].start <= address) low = middle + 1; else high = middle;
        }
        if (low == 0) return NULL;
        *offset = address - ranges[low - 1].start;
        /* An access counts for the range it starts in, as long as it ends there too. */
        if (*offset >= ranges[low - 1].length || size > ranges[low - 1].length - *offset)
            return NULL;
        return ranges[low - 1].target;
    }
    /* Whose the address is, or NULL; without `covers`, of devices alone. */
    static void *vmm_look_up(void **current, int covers, uint64_t address, uint32_t size,
                             uint64_t *offset) {
        struct vmm_table *table = __atomic_load_n((struct vmm_table **)current, __ATOMIC_ACQUIRE);
        struct vmm_reader *reader;
        void *found = NULL;
        if (table == NULL) return NULL;
        reader = vmm_read_begin((struct vmm_table **)current, table);
        /* SAFETY: what the line says is not freed until it says something else. */
        table = reader->table;
        if (covers && table->covers)
            found = vmm_find(table->ranges, table->covers, address, size, offset);
        if (found == NULL)
            found = vmm_find(table->ranges + table->covers, table->count - table->covers, address,
                             size, offset);
        __atomic_store_n(&reader->table, NULL, __ATOMIC_RELEASE);
        return found;
    }

    static int vmm_is_read(struct vmm_table *table) {
        int used = __atomic_load_n(&vmm_readers_used, __ATOMIC_SEQ_CST);
        for (int place = 0; place < used; place++)
            if (__atomic_load_n(&vmm_readers[place].table, __ATOMIC_SEQ_CST) == table) return 1;
        return 0;
    }
    /* The rest is for one thread at a time. Frees what nobody reads; how many are left. */
    static int vmm_tables_left(void **waiting) {
        struct vmm_table **place = (struct vmm_table **)waiting, *table;
        int left = 0;
        while ((table = *place) != NULL) {
            if (vmm_is_read(table)) { left++; place = &table->next; continue; }
            *place = table->next;
            free(table);
        }
        return left;
    }
    /* As now, with one more at `place` (its start `range`'s) or one less (NULL); 0, or -1. */
    static int vmm_renew(void **current, void **waiting, int place, int covers,
                         const struct vmm_range *range) {
        static struct vmm_table none;
        struct vmm_table *old = *current ? (struct vmm_table *)*current : &none;
        struct vmm_table *table = (struct vmm_table *)malloc(
            sizeof(*table) + (old->count + 1) * sizeof(struct vmm_range));
        int skipped = range ? 0 : 1, change = range ? 1 : -1;
        if (table == NULL) return -1;
        table->next = NULL;
        table->count = old->count + change;
        table->covers = old->covers + (covers ? change : 0);
        memcpy(table->ranges, old->ranges, place * sizeof(*range));
        if (range) table->ranges[place] = *range;
        memcpy(&table->ranges[place + 1 - skipped], &old->ranges[place + skipped],
               (old->count - place - skipped) * sizeof(*range));
        __atomic_store_n((struct vmm_table **)current, table, __ATOMIC_SEQ_CST);
        if (old != &none) {
            old->next = (struct vmm_table *)*waiting;
            *waiting = old;
            vmm_tables_left(waiting);
        }
        return 0;
    }
    /* Where `start` is in its half, or would be. */
    static int vmm_place(struct vmm_table *table, int covers, uint64_t start) {
        int place = covers ? 0 : table->covers, end = covers ? table->covers : table->count;
        while (place < end && table->ranges[place].start < start) place++;
        return place;
    }
    static int vmm_table_put(void **current, void **waiting, int covers, uint64_t start,
                             uint64_t length, void *target) {
        struct vmm_range range = {start, length, target};
        int place = *current ? vmm_place((struct vmm_table *)*current, covers, start) : 0;
        return vmm_renew(current, waiting, place, covers, &range);
    }
    /* The caller has put it there. */
    static int vmm_table_take(void **current, void **waiting, int covers, uint64_t start) {
        int place = vmm_place((struct vmm_table *)*current, covers, start);
        return vmm_renew(current, waiting, place, covers, NULL);
    }
    /* Nobody reads any more. */
    static void vmm_tables_free(void **current, void **waiting) {
        free(*current);
        *current = NULL;
        vmm_tables_left(waiting);
    }
    """
    void *vmm_look_up(void **current, int covers, uint64_t address, uint32_t size,
                      uint64_t *offset) nogil
    int vmm_tables_left(void **waiting)
    int vmm_table_put(void **current, void **waiting, int covers, uint64_t start, uint64_t length,
                      void *target)
    int vmm_table_take(void **current, void **waiting, int covers, uint64_t start)
    void vmm_tables_free(void **current, void **waiting)
