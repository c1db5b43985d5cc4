"""The demo guest: how its kernel and its initramfs are obtained and built. Run it with ``python -m guest``.

On hardware KVM any distribution kernel boots in under a second, and that is what is used. KVM-PVM, which is KVM
without hardware virtualization, runs the guest's kernel mode in an instruction emulator; there only a small kernel
boots in reasonable time, so it is built once from Debian's kernel source and kept in the user's cache folder.
"""
