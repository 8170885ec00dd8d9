# Arms its local APIC's timer `count` times for `period` ticks, halted each time until it fires, and
# tells how many cycles of the TSC were between arming and the handler.
# Byte 2, `=`: `spin` cycles lie between them. Then a line of 8 hexadecimal digits for each, byte 3.
    .code32
    .globl start
    .set EOI, 0xfee000b0
    .set SPURIOUS, 0xfee000f0
    .set LVT_TIMER, 0xfee00320
    .set INITIAL_COUNT, 0xfee00380
    .set DIVIDE, 0xfee003e0
    .set FOUND, 0x200000
start:
    jmp 1f
    .balign 8
count:  .long 1000
period: .long 1000000
spin:   .long 200000000
    .balign 8
gdt:    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:   .word 23
        .long gdt
idtr:   .word 0x21 * 8 - 1
        .long 0x180000
1:  cli
    mov $0x1f0000, %esp
    lgdt gdtr
    ljmp $8, $2f
2:  mov $16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    # One gate: vector 0x20. The two halves of the handler's address are not beside each other.
    mov $handler, %eax
    mov %eax, %ebx
    and $0xffff, %eax
    or $0x80000, %eax
    mov %eax, 0x180100
    and $0xffff0000, %ebx
    or $0x8e00, %ebx
    mov %ebx, 0x180104
    lidt idtr
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    movl $0x1ff, SPURIOUS
    movl $0x0b, DIVIDE
    movl $0x20, LVT_TIMER
    mov $2, %al
    call put
    rdtsc
    mov %eax, %esi
3:  rdtsc
    sub %esi, %eax
    cmp spin, %eax
    jb 3b
    mov $'=', %al
    call put
    mov $FOUND, %edi
    mov count, %ecx
4:  rdtsc
    mov %eax, %esi
    mov period, %eax
    mov %eax, INITIAL_COUNT
5:  sti
    hlt
    # Only the timer interrupts, and its handler does not come back to here.
    jmp 5b
woken:
    sub %esi, %ebx
    mov %ebx, (%edi)
    add $4, %edi
    loop 4b
    mov $FOUND, %edi
    mov count, %ebp
6:  mov (%edi), %ebx
    add $4, %edi
    mov $8, %ecx
7:  rol $4, %ebx
    mov %bl, %al
    and $15, %al
    add $'0', %al
    cmp $'9', %al
    jbe 8f
    add $39, %al
8:  call put
    loop 7b
    mov $'\n', %al
    call put
    dec %ebp
    jnz 6b
    mov $3, %al
    call put
9:  hlt
    jmp 9b
put:
    mov $0x3f8, %dx
    out %al, %dx
    ret
handler:
    rdtsc
    mov %eax, %ebx
    movl $0, EOI
    # No iret: a KVM that interprets ring 0 may not know it. Interrupts are off, as wanted.
    mov $0x1f0000, %esp
    jmp woken
