"""What only RISC-V has: its structures, register ids, interrupt architecture and boot state.

The modules import on every host, so layouts and register ids can be used anywhere; only the calls need a RISC-V kernel.
"""
