# Writes byte 2, reads the serial port's LSR `reads` times, writes byte 3, halts for ever.
    .code32
    .globl start
start:
    jmp 1f
    .balign 8
reads:  .long 100000
1:  cli
    mov $0x3f8, %dx
    mov $2, %al
    out %al, %dx
    mov reads, %ecx
    jecxz 3f
    mov $0x3fd, %dx
2:  in %dx, %al
    loop 2b
3:  mov $0x3f8, %dx
    mov $3, %al
    out %al, %dx
4:  hlt
    jmp 4b
