"""Conditions on a vCPU's registers as small checked programs, evaluated without the GIL.

A program is a list of (code, operand) for a machine with one stack of unsigned 64-bit integers.
All jumps go forward, and the stack's depth at each step is known when the program is made: so each
evaluation ends, within the stack.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from vmm._native.linux.kvm cimport KVM_GET_REGS, kvm_regs
from vmm._native.linux.kvm_state cimport KVM_GET_SREGS2, kvm_sregs2

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from *:
    """
    static inline void vmm_count_up(uint64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
    """
    void vmm_count_up(uint64_t *p) noexcept nogil

cdef enum:
    DEPTH_LIMIT = 32
    STEPS_LIMIT = 512
    UNREACHED = -1

    CONSTANT, REGISTER
    NOT, NEGATE, INVERT
    ADD, SUB, MUL, AND, OR, XOR, SHL, SHR, MOD, DIV, EQ, NE, LT, LE, GT, GE
    OR_ELSE, AND_THEN            # jump with the top kept when it is true (false), else drop it
    CODES

DEPTH_MAX = DEPTH_LIMIT
STEPS_MAX = STEPS_LIMIT
OPERATIONS = {
    "constant": CONSTANT, "register": REGISTER, "not": NOT, "negate": NEGATE, "invert": INVERT,
    "+": ADD, "-": SUB, "*": MUL, "&": AND, "|": OR, "^": XOR, "<<": SHL, ">>": SHR, "%": MOD,
    "//": DIV, "==": EQ, "!=": NE, "<": LT, "<=": LE, ">": GT, ">=": GE,
    "or else": OR_ELSE, "and then": AND_THEN,
}


cdef class Condition:
    """One program, a sequence of (code, operand); ValueError when it is none.

    Registers are numbered: rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15, rip, rflags; cr0,
    cr2, cr3, cr4, cr8, efer, apic_base; address, value and size of an access. Any thread.
    """

    def __cinit__(self, program):
        cdef int depths[STEPS_LIMIT + 1]
        cdef int i
        self.count = len(program)
        if not 0 < self.count <= STEPS_LIMIT:
            raise ValueError(f"{self.count} steps: 1 to {STEPS_LIMIT} are possible")
        self.steps = <Step *>calloc(self.count, sizeof(Step))
        if self.steps == NULL:
            raise MemoryError
        depths[0] = 0
        for i in range(self.count):
            depths[i + 1] = UNREACHED
        for i, (code, operand) in enumerate(program):
            self.take(i, code, operand, depths)
        if depths[self.count] != 1:
            raise ValueError(f"it leaves {depths[self.count]} values: one is needed")

    def __dealloc__(self):
        free(self.steps)

    cdef int take(self, int number, int code, operand, int *depths) except -1:
        """Check one step; what it makes of the stack's depth goes to where it leads."""
        cdef int depth = depths[number]
        if not 0 <= code < CODES or not 0 <= operand < 1 << 64:
            raise ValueError(f"step {number}: no operation {code}, {operand}")
        if code == REGISTER:
            if operand >= REGISTERS:
                raise ValueError(f"step {number}: no register {operand}")
            self.wants_system = self.wants_system or GENERAL <= operand < SYSTEM
            self.wants_registers = self.wants_registers or operand < SYSTEM
        if code >= OR_ELSE:
            if not number < operand <= self.count:
                raise ValueError(f"step {number}: a jump to {operand}: forward, and inside")
            reach(depths, operand, depth)
        if depth < needs(code):
            raise ValueError(f"step {number}: {depth} values on the stack are too few")
        reach(depths, number + 1, depth + 1 - needs(code) - (code >= OR_ELSE))
        self.steps[number] = Step(operand, code)
        return 0

    cdef int holds(self, const uint64_t *registers) noexcept nogil:
        # SAFETY: the constructor has followed every way through the program: the stack has at
        # least the values that a step takes and never more than DEPTH_LIMIT, registers are below
        # REGISTERS, and `place` only grows, up to `count`.
        cdef uint64_t stack[DEPTH_LIMIT]
        cdef uint64_t *top = stack - 1
        cdef int place = 0
        cdef Step *step
        while place < self.count:
            step = &self.steps[place]
            place += 1
            if step.code == CONSTANT:
                top += 1
                top[0] = step.operand
            elif step.code == REGISTER:
                top += 1
                top[0] = registers[step.operand]
            elif step.code <= INVERT:
                top[0] = of_one(step.code, top[0])
            elif step.code >= OR_ELSE:
                if (top[0] != 0) == (step.code == OR_ELSE):
                    place = <int>step.operand
                else:
                    top -= 1
            else:
                top -= 1
                if (step.code == MOD or step.code == DIV) and top[1] == 0:
                    return FAILED
                top[0] = of_two(step.code, top[0], top[1])
        return TRUE if stack[0] else FALSE

    cdef void pass_by(self) noexcept nogil:
        vmm_count_up(&self.passed_by)

    @property
    def passed(self):
        """How often a gate found it false, and let the vCPU go on."""
        return self.passed_by

    def evaluate(self, registers):
        """Whether it holds for these 18 values (or 25, or 28: what is not given is 0);
        ZeroDivisionError for a division by zero."""
        cdef uint64_t values[REGISTERS]
        cdef int i = 0
        if len(registers) not in (GENERAL, SYSTEM, REGISTERS):
            raise ValueError(f"{len(registers)} registers: {GENERAL}, {SYSTEM} or {REGISTERS}")
        memset(values, 0, sizeof(values))
        for value in registers:
            values[i] = value
            i += 1
        found = self.holds(values)
        if found == FAILED:
            raise ZeroDivisionError("a division by zero in a condition")
        return found == TRUE


cdef int needs(int code):
    """How many values an operation takes from the stack; it puts one there."""
    if code <= REGISTER:
        return 0
    return 1 if code <= INVERT or code >= OR_ELSE else 2


cdef int reach(int *depths, int number, int depth) except -1:
    if depths[number] not in (UNREACHED, depth):
        raise ValueError(f"step {number} is reached with {depths[number]} and {depth} values")
    if depth > DEPTH_LIMIT:
        raise ValueError(f"step {number}: more than {DEPTH_LIMIT} values on the stack")
    depths[number] = depth
    return 0


cdef uint64_t of_one(int code, uint64_t value) noexcept nogil:
    if code == NOT:
        return value == 0
    return 0 - value if code == NEGATE else ~value


cdef uint64_t of_two(int code, uint64_t a, uint64_t b) noexcept nogil:
    if code == ADD:
        return a + b
    if code == SUB:
        return a - b
    if code == MUL:
        return a * b
    if code == AND:
        return a & b
    if code == OR:
        return a | b
    if code == XOR:
        return a ^ b
    if code == SHL:
        return a << b if b < 64 else 0
    if code == SHR:
        return a >> b if b < 64 else 0
    if code == MOD:
        return a % b
    if code == DIV:
        return a // b
    return compared(code, a, b)


cdef bint compared(int code, uint64_t a, uint64_t b) noexcept nogil:
    if code == EQ:
        return a == b
    if code == NE:
        return a != b
    if code == LT:
        return a < b
    if code == LE:
        return a <= b
    return a > b if code == GT else a >= b


cdef int read_registers(int fd, kvm_regs *regs, kvm_sregs2 *sregs,
                        uint64_t *registers) noexcept nogil:
    # SAFETY: a kvm_regs is GENERAL registers of 64 bits in this order.
    if ioctl(fd, KVM_GET_REGS, regs) < 0:
        return -1
    memcpy(registers, regs, GENERAL * sizeof(uint64_t))
    memset(&registers[GENERAL], 0, (REGISTERS - GENERAL) * sizeof(uint64_t))
    if sregs == NULL:
        return 0
    if ioctl(fd, KVM_GET_SREGS2, sregs) < 0:
        return -1
    registers[GENERAL] = sregs.cr0
    registers[GENERAL + 1] = sregs.cr2
    registers[GENERAL + 2] = sregs.cr3
    registers[GENERAL + 3] = sregs.cr4
    registers[GENERAL + 4] = sregs.cr8
    registers[GENERAL + 5] = sregs.efer
    registers[GENERAL + 6] = sregs.apic_base
    return 0
