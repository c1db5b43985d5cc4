"""What only arm64 has: its structures, register ids, interrupt controllers and boot state.

The modules import on every host, so layouts and register ids can be used anywhere; only the calls need an arm64 kernel.
"""
