# The services of a PC's BIOS that 16-bit boot code calls before it leaves real mode. bios.py holds it assembled:
#   as --32 -o bios.o bios.S && objcopy -O binary -j .text bios.o bios.bin
# It lies at f000:e000. What it answers about memory is appended by bios.py, at `data`. No power-on self test runs
# before the boot code, so the first call for text or memory programs the interrupt controllers and the timer.
        .code16
        .intel_syntax noprefix
        .set base, 0xe000
start:
        # where each handler begins, for the interrupt vectors
        .word base + nothing - start, base + tick - start, base + master - start, base + slave - start
        .word base + int10 - start, base + int11 - start, base + int12 - start, base + int13 - start
        .word base + int15 - start, base + int16 - start, base + int1a - start

nothing:
        iret

tick:                                   # interrupt 8, IRQ 0: the BIOS's clock
        push ds
        push ax
        mov ax, 0x40
        mov ds, ax
        inc dword ptr ds:[0x6c]
        int 0x1c
        mov al, 0x20
        out 0x20, al
        pop ax
        pop ds
        iret

slave:                                  # IRQ 8 to 15 that nobody wants
        push ax
        mov al, 0x20
        out 0xa0, al
        pop ax
master:                                 # IRQ 1 to 7 that nobody wants
        push ax
        mov al, 0x20
        out 0x20, al
        pop ax
        iret

int10:                                  # video: text goes to the first serial port
        call begin
        cmp ah, 0x0e
        je teletype
        cmp ah, 0x0f
        je get_mode
        cmp ah, 0x03
        je get_cursor
        iret
teletype:
        push dx
        push ax
        mov dx, 0x3fd
1:      in al, dx
        test al, 0x20
        jz 1b
        pop ax
        mov dx, 0x3f8
        out dx, al
        pop dx
        iret
get_mode:
        mov ax, 0x5003                  # 80 columns, mode 3
        mov bh, 0
        iret
get_cursor:
        mov cx, 0x0607
        xor dx, dx
        iret

int11:                                  # equipment: a numeric coprocessor, one serial port
        mov ax, 0x0202
        iret

int12:                                  # KiB below the extended BIOS data area
        mov ax, 639
        iret

int13:                                  # disks: there are none
        mov ah, 1
failed:
        push bp
        mov bp, sp
        or byte ptr [bp + 6], 1         # the carry flag that iret restores
        pop bp
        iret
done:
        push bp
        mov bp, sp
        and byte ptr [bp + 6], 0xfe
        pop bp
        iret

int15:
        call begin
        cmp ax, 0xe820
        je memory_map
        cmp ax, 0xe801
        je memory_size
        cmp ah, 0x88
        je extended_memory
        cmp ah, 0x24
        je a20
unknown:
        mov ah, 0x86
        jmp failed
memory_map:
        cmp edx, 0x534d4150             # "SMAP"
        jne unknown
        cmp bx, cs:[base + count - start]
        jae unknown
        push si
        push di
        push ds
        push cs
        pop ds
        imul si, bx, 20
        add si, base + entries - start
        mov cx, 10
        cld
        rep movsw
        pop ds
        pop di
        pop si
        inc bx
        cmp bx, cs:[base + count - start]
        jb 1f
        xor ebx, ebx
1:      mov ecx, 20
        mov eax, edx
        jmp done
memory_size:
        mov ax, cs:[base + below_16m - start]
        mov bx, cs:[base + above_16m - start]
        mov cx, ax
        mov dx, bx
        jmp done
extended_memory:
        mov ax, cs:[base + extended - start]
        jmp done
a20:                                    # the gate is open and stays open
        cmp al, 3
        jne 1f
        mov bx, 3                       # by the keyboard controller, and by port 0x92
1:      cmp al, 2
        jne 2f
        mov al, 1                       # it is on
2:      mov ah, 0
        jmp done

int16:                                  # keyboard: what comes from the first serial port
        and ah, 0xef
        jz get_key
        cmp ah, 1
        je peek_key
        xor al, al
        iret
get_key:
        call poll
        jz get_key
        push ds
        push 0x40
        pop ds
        mov byte ptr ds:[0x1e], 0
        pop ds
        iret
peek_key:
        call poll
        push bp
        mov bp, sp
        jz 1f
        and byte ptr [bp + 6], 0xbf     # the zero flag: a key waits
        pop bp
        iret
1:      or byte ptr [bp + 6], 0x40
        pop bp
        iret
poll:                                   # the waiting key in al, zero if there is none
        push ds
        push dx
        push 0x40
        pop ds
        cmp byte ptr ds:[0x1e], 0
        jne 1f
        mov dx, 0x3fd
        in al, dx
        test al, 1
        jz 1f
        mov dx, 0x3f8
        in al, dx
        mov ds:[0x1e], al
1:      mov ah, 0
        mov al, ds:[0x1e]
        test al, al
        pop dx
        pop ds
        ret

int1a:                                  # time of day: ticks since midnight; no PCI services
        test ah, ah
        jnz failed
        push ds
        push 0x40
        pop ds
        mov dx, ds:[0x6c]
        mov cx, ds:[0x6e]
        pop ds
        mov al, 0
        jmp done

begin:                                  # once: IRQ 0 to 7 at vector 8, 8 to 15 at 0x70, and the clock 18.2 times a second
        push ds
        push 0x40
        pop ds
        cmp byte ptr ds:[0xf0], 0
        jne 1f
        mov byte ptr ds:[0xf0], 1
        push ax
        mov al, 0x11
        out 0x20, al
        out 0xa0, al
        mov al, 0x08
        out 0x21, al
        mov al, 0x70
        out 0xa1, al
        mov al, 0x04
        out 0x21, al
        mov al, 0x02
        out 0xa1, al
        mov al, 0x01
        out 0x21, al
        out 0xa1, al
        mov al, 0xfe                    # all masked but the timer
        out 0x21, al
        mov al, 0xff
        out 0xa1, al
        mov al, 0x34
        out 0x43, al
        xor al, al
        out 0x40, al
        out 0x40, al
        pop ax
1:      pop ds
        ret

        .balign 2
data:
        .set below_16m, data
        .set above_16m, data + 2
        .set extended, data + 4
        .set count, data + 6
        .set entries, data + 8
