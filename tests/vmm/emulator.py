"""What KVM-PVM's instruction emulator lacks and firmware needs, done by the VMM: so little that it stays in the tests.

On hardware KVM none of these exits happens.
"""

from struct import unpack

from pyvmm_kvm import VcpuFd
from pyvmm_kvm.exits.rare import InternalError
from pyvmm_memory import GuestMemoryMmap

SKIPPED = {
    b"\x9b": 1,  # fwait
    b"\xd9\x2d": 6,  # fldcw, address behind the opcode
    b"\x0f\xae\x15": 7,  # ldmxcsr, address behind the opcode
}
IRET = 0xCF
PROTECTED, LONG = 1, 1 << 10  # in cr0 and efer
RFLAGS_ALWAYS = 2  # the bit that is never clear


def emulate(vcpu: VcpuFd, exit_: InternalError, memory: GuestMemoryMmap) -> bool:
    """Do the instruction that KVM gave up at; false where it is none of those known here."""
    code = bytes(exit_.instruction)
    for opcode, length in SKIPPED.items():
        if code.startswith(opcode):
            regs = vcpu.get_regs()
            regs.rip += length
            vcpu.set_regs(regs)
            return True
    return code[:1] == bytes([IRET]) and _iret(vcpu, memory)


def _iret(vcpu: VcpuFd, memory: GuestMemoryMmap) -> bool:
    """Return from an interrupt in 32-bit protected mode, to the same code segment."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    if not sregs.cr0 & PROTECTED or sregs.efer & LONG or not sregs.cs.db:
        return False
    # KVM-PVM delivers an interrupt with a frame at rsp itself, as if the base of ss were zero
    for base in (0, sregs.ss.base):
        frame = bytearray(12)
        memory.read_slice(frame, base + regs.rsp & 0xFFFFFFFF)
        rip, segment, rflags = unpack("<III", frame)
        # pushed as 32 bits, of which the upper half is undefined
        if segment & 0xFFFF == sregs.cs.selector and rflags & RFLAGS_ALWAYS:
            regs.rip, regs.rflags, regs.rsp = rip, rflags, regs.rsp + 12
            vcpu.set_regs(regs)
            return True
    return False
