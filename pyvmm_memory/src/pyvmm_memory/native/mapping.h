/* The calls that Python's mmap module lacks. Addresses are plain numbers; each returns -errno where it fails. */
static int64_t pyvmm_mmap(uint64_t address, uint64_t length, int prot, int flags, int fd, int64_t offset)
{
    void *at = mmap((void *)(uintptr_t)address, length, prot, flags, fd, offset);
    return at == MAP_FAILED ? -errno : (int64_t)(uintptr_t)at;
}

static int pyvmm_munmap(uint64_t address, uint64_t length)
{
    return munmap((void *)(uintptr_t)address, length) ? -errno : 0;
}

static int pyvmm_madvise(uint64_t address, uint64_t length, int advice)
{
    return madvise((void *)(uintptr_t)address, length, advice) ? -errno : 0;
}

/* Make every page present and writable, as a kernel without MADV_POPULATE_WRITE is asked: an atomic or with nothing
 * changes no byte that a guest may be writing meanwhile. A word, for not every processor has atomics of bytes. */
static void pyvmm_touch(uint64_t address, uint64_t length, uint64_t page)
{
    for (uint64_t done = 0; done < length; done += page)
        __atomic_fetch_or((uint32_t *)(uintptr_t)((address + done) & ~3ull), 0, __ATOMIC_RELAXED);
}

static int pyvmm_mbind(uint64_t address, uint64_t length, int mode, const uint64_t *nodes, uint64_t bits, unsigned flags)
{
    return syscall(SYS_mbind, (unsigned long)address, (unsigned long)length, (unsigned long)mode, nodes,
                   (unsigned long)bits, flags) ? -errno : 0;
}

static int pyvmm_get_mempolicy(uint64_t address, int *mode, uint64_t *nodes, uint64_t bits, uint64_t flags)
{
    return syscall(SYS_get_mempolicy, mode, nodes, (unsigned long)bits, (unsigned long)address, (unsigned long)flags)
               ? -errno : 0;
}
