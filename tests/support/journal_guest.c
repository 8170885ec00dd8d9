/* A guest that writes numbered records to its first disk, flushes, and says what was acknowledged.
 *
 * 32-bit code with a driver of its own for virtio-blk (virtio 1.2, 4.1 and 5.2), which sleeps in hlt
 * until the disk's interrupt or a tick. Record n, from 1 on, is the block n % BLOCKS; each of its
 * sectors has n at both ends. Said on the serial port, in hexadecimal:
 *   r N  found at the start: N is the last of a row that is whole
 *   a N  a flush has acknowledged everything up to N
 *   e N  a write or a flush behind N failed, and was told so; it is tried again
 *   v N  all blocks were read, and none was older than N tells
 *   ttt... in a life that ends: a line of TEXT bytes with each tick
 *   bad N  block of record N is not what was acknowledged
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum {
    SLOT = 2, BLOCKS = 64, BATCH = 4, SECTORS = 8, RING = 16,
    COM1 = 0x3f8, RESET_PORT = 0x64, RESET = 0xfe,
    TEXT = 1024, NOTIFY = 0x6000, TABLE = 0x8000,
    VECTOR = 0x40, TICK = 0x41, SPURIOUS = 0xff,
    IN = 0, OUT = 1, FLUSH = 4,
};

#ifndef ROUNDS
#define ROUNDS 0 /* of a life, each with a tick of sleep; then all is read, and it resets. 0: for ever */
#endif

static volatile u8 *bar;
static u64 idt[256];
static struct { u64 gpa; u32 length; u16 flags, next; } descriptors[RING] __attribute__((aligned(16)));
static volatile struct { u16 flags, index, ring[RING]; } available __attribute__((aligned(4)));
static volatile struct { u16 flags, index; struct { u32 id, length; } ring[RING]; } used
    __attribute__((aligned(4)));
static struct { u32 kind, reserved; u64 sector; } headers[BATCH];
static volatile u8 states[BATCH];
static u32 data[BATCH][SECTORS][128];
static volatile u32 ticks __attribute__((used));

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void say(const char *word, u32 number)
{
    for (; *word; word++)
        out8(COM1, *word);
    for (int shift = 28; shift >= 0; shift -= 4)
        out8(COM1, "0123456789abcdef"[number >> shift & 15]);
    out8(COM1, '\n');
}

static void say_much(void)
{
    static u8 text[TEXT];
    u8 *from = text;
    u32 count = TEXT;
    for (int at = 0; at < TEXT && text[TEXT - 1] == 0; at++)
        text[at] = at == TEXT - 1 ? '\n' : 't';
    __asm__ volatile("cld; rep outsb" : "+S"(from), "+c"(count) : "d"(COM1) : "memory");
}

static void config(u32 reg) { out32(0xcf8, 1u << 31 | SLOT << 11 | reg); }

static volatile u32 *lapic(u32 reg) { return (volatile u32 *)(0xfee00000u + reg); }

/* Interrupts come in while this sleeps and nowhere else (sti lets nothing in before hlt has begun),
 * so they end by going on behind it: not every KVM that interprets ring 0 knows iret. */
__attribute__((naked, noinline)) static void sleep(void)
{
    __asm__ volatile("sti; hlt; cli; awake: ret");
}

__attribute__((naked)) static void on_disk(void)
{
    __asm__ volatile("movl $0, 0xfee000b0; addl $12, %esp; jmp awake");
}

__attribute__((naked)) static void on_tick(void)
{
    __asm__ volatile("incl ticks; movl $0, 0xfee000b0; addl $12, %esp; jmp awake");
}

static void gate(int vector, void (*handler)(void))
{
    u16 selector;
    __asm__("movw %%cs, %0" : "=r"(selector));
    u32 at = (u32)handler;
    idt[vector] = (u64)(at & 0xffff0000u) << 32 | 0x8e00ull << 32 | (u32)selector << 16 | (at & 0xffff);
}

static void set_interrupts(void)
{
    struct { u16 limit; u32 base; } __attribute__((packed)) where = {sizeof(idt) - 1, (u32)idt};
    gate(VECTOR, on_disk);
    gate(TICK, on_tick);
    gate(SPURIOUS, on_tick);
    __asm__ volatile("lidt %0" ::"m"(where));
    *lapic(0xf0) = 0x100 | SPURIOUS;
    *lapic(0x3e0) = 3;                  /* by 16 */
    *lapic(0x320) = 1 << 17 | TICK;     /* periodic */
    *lapic(0x380) = 100000000u / 16;  /* KVM's LAPIC counts nanoseconds */
}

static void reg8(u32 at, u8 value) { bar[at] = value; }
static void reg16(u32 at, u16 value) { *(volatile u16 *)(bar + at) = value; }
static void reg32(u32 at, u32 value) { *(volatile u32 *)(bar + at) = value; }

static void set_area(u32 at, const volatile void *area)
{
    reg32(at, (u32)area);
    reg32(at + 4, 0);
}

static void set_disk(void)
{
    config(0x10);
    bar = (u8 *)(in32(0xcfc) & ~15u);
    config(4);
    out32(0xcfc, 6); /* memory, bus master */
    for (u32 cap = 0x34;;) {
        config(cap & ~3u);
        cap = in32(0xcfc) >> 8 * (cap & 3) & 0xff;
        config(cap);
        u32 head = in32(0xcfc);
        if ((head & 0xff) == 0x11) { /* MSI-X */
            out32(0xcfc, (head & ~0xc0000000u) | 0x80000000u);
            break;
        }
        cap += 1;
    }
    reg32(TABLE, 0xfee00000);
    reg32(TABLE + 4, 0);
    reg32(TABLE + 8, VECTOR);
    reg32(TABLE + 12, 0);
    reg8(0x14, 0);
    reg8(0x14, 3);
    reg32(0x08, 0);
    reg32(0x0c, 1 << 9); /* FLUSH */
    reg32(0x08, 1);
    reg32(0x0c, 1); /* VERSION_1 */
    reg8(0x14, 0xb);
    reg16(0x16, 0);
    reg16(0x18, RING);
    reg16(0x1a, 0);
    set_area(0x20, descriptors);
    set_area(0x28, &available);
    set_area(0x30, &used);
    reg16(0x1c, 1);
    reg8(0x14, 0xf);
}

static void ask(int place, u32 kind, u32 block)
{
    int first = 3 * place, last = kind == FLUSH ? first + 1 : first + 2;
    headers[place].kind = kind;
    headers[place].sector = block * SECTORS;
    states[place] = 0xff;
    descriptors[first].gpa = (u32)&headers[place];
    descriptors[first].length = sizeof(headers[place]);
    descriptors[first].flags = 1;
    descriptors[first].next = first + 1;
    descriptors[first + 1].gpa = (u32)data[place];
    descriptors[first + 1].length = sizeof(data[place]);
    descriptors[first + 1].flags = kind == IN ? 3 : 1;
    descriptors[first + 1].next = last;
    descriptors[last].gpa = (u32)&states[place];
    descriptors[last].length = 1;
    descriptors[last].flags = 2;
    available.ring[available.index % RING] = first;
    available.index++;
}

/* Until all that was asked for is answered; true when all went well. */
static int settle(int count)
{
    __asm__ volatile("lock; addl $0, (%%esp)" ::: "memory");
    reg16(NOTIFY, 0);
    while (used.index != available.index)
        sleep();
    for (int place = 0; place < count; place++)
        if (states[place])
            return 0;
    return 1;
}

static void fill(int place, u32 number)
{
    for (int sector = 0; sector < SECTORS; sector++)
        data[place][sector][0] = data[place][sector][127] = number;
}

/* Its number, when all of a block in memory is of one record; else 0. */
static u32 whole(int place)
{
    u32 number = data[place][0][0];
    for (int sector = 0; sector < SECTORS; sector++)
        if (data[place][sector][0] != number || data[place][sector][127] != number)
            return 0;
    return number;
}

/* Reads block after block: each must have a record that is whole and not older than `last` allows,
 * but for those that may have been under way. Answers the last record of a row that is whole. */
static u32 verify(u32 last, int found)
{
    u32 newest = 0;
    static u32 numbers[BLOCKS];
    for (u32 block = 0; block < BLOCKS; block++) {
        do
            ask(0, IN, block);
        while (!settle(1));
        numbers[block] = whole(0);
    }
    if (found) {
        /* A row ends where the next record is not there: at most BATCH are not in order. */
        for (u32 block = 0; block < BLOCKS; block++)
            if (numbers[block] > newest)
                newest = numbers[block];
        for (u32 number = newest < BLOCKS ? 1 : newest - BLOCKS + 1 + BATCH; number <= newest; number++)
            if (numbers[number % BLOCKS] != number)
                newest = number - 1;
        return newest;
    }
    for (u32 number = last < BLOCKS ? 1 : last - BLOCKS + 1; number <= last; number++)
        if (numbers[number % BLOCKS] != number)
            say("bad ", number);
    say("v ", last);
    return last;
}

static void live(void)
{
    set_interrupts();
    set_disk();
    u32 last = verify(0, 1);
    say("r ", last);
    for (u32 round = 1;; round++) {
        for (int place = 0; place < BATCH; place++) {
            fill(place, last + 1 + place);
            ask(place, OUT, (last + 1 + place) % BLOCKS);
        }
        int good = settle(BATCH);
        ask(0, FLUSH, 0);
        good &= settle(1);
        if (good)
            say("a ", last += BATCH);
        else
            say("e ", last);
        if (ROUNDS)
            say_much();
        for (u32 now = ticks; ROUNDS && ticks == now;)
            sleep();
        if (round == ROUNDS)
            break;
    }
    verify(last, 0);
    out8(RESET_PORT, RESET);
    for (;;)
        __asm__ volatile("cli; hlt");
}

static u8 stack[8192] __attribute__((aligned(16), used));

__attribute__((naked)) void start(void)
{
    __asm__ volatile("movl $stack + 8192, %%esp; jmp %P0" ::"i"(live));
}

/* The PVH entry point: an ELF note of Xen's, type 18. */
__asm__(".pushsection .note.pvh, \"a\", @note\n"
        ".long 4, 4, 18\n"
        ".asciz \"Xen\"\n"
        ".long start\n"
        ".popsection\n");
