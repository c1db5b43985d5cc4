typedef struct { ...; } pyvmm_userfault;

void pyvmm_fence(void);

void pyvmm_bitmap_change(uint64_t *words, uint64_t first, uint64_t last, int dirty);
void pyvmm_bitmap_take(uint64_t *words, char *taken, uint64_t count);

int64_t pyvmm_mmap(uint64_t address, uint64_t length, int prot, int flags, int fd, int64_t offset);
int pyvmm_munmap(uint64_t address, uint64_t length);
int pyvmm_madvise(uint64_t address, uint64_t length, int advice);
void pyvmm_touch(uint64_t address, uint64_t length, uint64_t page);
int pyvmm_mbind(uint64_t address, uint64_t length, int mode, const uint64_t *nodes, uint64_t bits, unsigned flags);
int pyvmm_get_mempolicy(uint64_t address, int *mode, uint64_t *nodes, uint64_t bits, uint64_t flags);

int pyvmm_userfault_start(pyvmm_userfault **result, uint64_t base, uint64_t size, uint64_t page, uint64_t chunk,
                          int file, uint64_t file_offset, uint64_t file_size, uint64_t *dirty, int *step);
void pyvmm_userfault_stop(pyvmm_userfault *self);
int pyvmm_userfault_fill(pyvmm_userfault *self, uint64_t offset, uint64_t length);
int pyvmm_userfault_protect(pyvmm_userfault *self, uint64_t offset, uint64_t length, int protect);
void pyvmm_userfault_counters(pyvmm_userfault *self, uint64_t *counters);
