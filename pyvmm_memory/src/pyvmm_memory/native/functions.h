void pyvmm_fence(void);
void pyvmm_bitmap_change(uint64_t *words, uint64_t first, uint64_t last, int dirty);
void pyvmm_bitmap_take(uint64_t *words, char *taken, uint64_t count);
