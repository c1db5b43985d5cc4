struct kvm_run;
struct pyvmm_exit_record { __u32 reason; __s32 result; __u64 words[4]; };
struct pyvmm_vcpu {
    int fd; int running; int closed; __u64 exits; struct kvm_run *run; struct pyvmm_exit_record ring[16];
};
int pyvmm_ioctl(int fd, unsigned long request, void *argument);
int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long argument);
long long pyvmm_run(unsigned long address);
int pyvmm_close(struct pyvmm_vcpu *vcpu);
int pyvmm_kick_enter(int vcpu_fd);
int pyvmm_kick_consume(void);
int pyvmm_kick_leave(int vcpu_fd);
unsigned long pyvmm_thread_self(void);
int pyvmm_kick(unsigned long thread);
void pyvmm_fence(void);
unsigned int pyvmm_load_acquire(const void *address);
void pyvmm_store_release(void *address, unsigned int value);
