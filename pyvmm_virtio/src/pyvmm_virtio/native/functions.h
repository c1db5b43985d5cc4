typedef struct {
    uint64_t guest, size, host;
    int writable;
} pyvmm_region;

typedef struct {
    uint64_t table, avail, used;
    uint32_t size;
    uint16_t next_avail, next_used;
    int indirect;
    const pyvmm_region *regions;
    uint32_t region_count;
    int disk, may_write;
    uint64_t capacity, limit, budget;
    uint32_t size_max, seg_max;
    const uint8_t *taken;
    uint64_t moved;
    int stopped;
} pyvmm_block_queue;

typedef struct pyvmm_pool pyvmm_pool;

pyvmm_pool *pyvmm_pool_start(uint32_t threads);
void pyvmm_pool_stop(pyvmm_pool *pool);
int pyvmm_fallocate(int fd, int mode, int64_t offset, int64_t length);
int pyvmm_block_run(pyvmm_block_queue *queue, pyvmm_pool *pool);
