#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void pyvmm_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

