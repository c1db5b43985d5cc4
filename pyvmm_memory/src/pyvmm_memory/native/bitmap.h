/* Dirty bitmaps that every thread may use: the words are at an address of their own, one bit for each page.
 *
 * A mark comes after the write that it records, and a page is read after its mark was taken away: the fetch_or in
 * pyvmm_bitmap_change() publishes the write, the partner is the fetch_and there, or the exchange in
 * pyvmm_bitmap_take(). Who takes a mark away sees the write; a write that comes later marks again. */
static void pyvmm_bitmap_change(uint64_t *words, uint64_t first, uint64_t last, int dirty)
{
    for (uint64_t word = first / 64; word <= last / 64; word++) {
        unsigned low = word == first / 64 ? first % 64 : 0, high = word == last / 64 ? last % 64 : 63;
        uint64_t mask = (high == 63 ? 0 : 1ull << (high + 1)) - (1ull << low);
        if (dirty)
            __atomic_fetch_or(words + word, mask, __ATOMIC_SEQ_CST);
        else
            __atomic_fetch_and(words + word, ~mask, __ATOMIC_SEQ_CST);
    }
}

static void pyvmm_bitmap_take(uint64_t *words, char *taken, uint64_t count)
{
    for (uint64_t word = 0; word < count; word++) {
        uint64_t value = __atomic_exchange_n(words + word, 0, __ATOMIC_SEQ_CST);
        memcpy(taken + 8 * word, &value, 8);
    }
}
