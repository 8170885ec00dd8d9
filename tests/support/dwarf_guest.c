/* A guest for a debugger: 64-bit code with structs, calls and lines that DWARF tells of. */

struct point {
    int x, y;
};

struct line {
    const char *name;
    struct point from, to;
    unsigned long moves;
};

struct line drawn = {"drawn", {1, 2}, {3, 4}, 0};
volatile unsigned long rounds;

static int sum(int a, int b)
{
    int both = a + b;
    return both; /* line: sum */
}

static int move(struct line *line, int by)
{
    line->to.x = sum(line->to.x, by); /* line: call */
    line->moves++;                    /* line: behind */
    return line->to.x;
}

void start(void)
{
    for (;;) {
        move(&drawn, 10);
        rounds++;
    }
}

/* The PVH entry point: an ELF note of Xen's, type 18. */
__asm__(".pushsection .note.pvh, \"a\", @note\n"
        ".long 4, 4, 18\n"
        ".asciz \"Xen\"\n"
        ".long start\n"
        ".popsection\n");
