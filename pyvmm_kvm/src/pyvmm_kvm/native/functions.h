struct kvm_run;
struct pyvmm_exit_record { __u32 reason; __s32 result; __u64 words[4]; };
struct pyvmm_vcpu {
    int fd; int running; int closed; int calls; int waits; int turn; __u64 exits; struct kvm_run *run;
    struct pyvmm_desk *asked; struct pyvmm_desk *desks[2]; struct pyvmm_exit_record ring[16];
};
struct pyvmm_place { long long code; void *exit; void *data; };
struct pyvmm_desk {
    __u8 *data; __u8 *page; __u64 given; __u64 length; void *lent; __u32 count; int unknown; struct pyvmm_place *last;
    struct pyvmm_place places[128];
};
int pyvmm_ioctl(int fd, unsigned long request, void *argument);
int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long argument);
long long pyvmm_run(unsigned long address);
long long pyvmm_learn(struct pyvmm_desk *desk, long long code, void *exit, void *data);
void pyvmm_count(struct pyvmm_desk *desk);
int pyvmm_swap(struct pyvmm_vcpu *vcpu, struct pyvmm_desk *desk);
int pyvmm_vcpu_ioctl(struct pyvmm_vcpu *vcpu, unsigned long request, void *argument);
int pyvmm_vcpu_ioctl_value(struct pyvmm_vcpu *vcpu, unsigned long request, unsigned long argument);
int pyvmm_close(struct pyvmm_vcpu *vcpu);
long long pyvmm_kick_enter(void);
int pyvmm_kick_consume(void);
unsigned long pyvmm_thread_self(void);
int pyvmm_kick(unsigned long thread);
void pyvmm_fence(void);
unsigned int pyvmm_load_acquire(const void *address);
void pyvmm_store_release(void *address, unsigned int value);
