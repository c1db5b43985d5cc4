/* linux/kvm.h leaves these inner structures without a name. */
struct pyvmm_ioapic_state {
    __u64 base_address; __u32 ioregsel; __u32 id; __u32 irr; __u32 pad; __u64 redirtbl[24];
};
struct pyvmm_irqchip { __u32 chip_id; __u32 pad; __u8 chip[512]; };
struct pyvmm_vcpu_exception { __u8 injected; __u8 nr; __u8 has_error_code; __u8 pending; __u32 error_code; };
struct pyvmm_vcpu_interrupt { __u8 injected; __u8 nr; __u8 soft; __u8 shadow; };
struct pyvmm_vcpu_nmi { __u8 injected; __u8 pending; __u8 masked; __u8 pad; };
struct pyvmm_vcpu_smi { __u8 smm; __u8 pending; __u8 smm_inside_nmi; __u8 latched_init; };
struct pyvmm_vcpu_triple_fault { __u8 pending; };
struct pyvmm_vcpu_events {
    struct pyvmm_vcpu_exception exception;
    struct pyvmm_vcpu_interrupt interrupt;
    struct pyvmm_vcpu_nmi nmi;
    __u32 sipi_vector; __u32 flags;
    struct pyvmm_vcpu_smi smi;
    struct pyvmm_vcpu_triple_fault triple_fault;
    __u8 reserved[26]; __u8 exception_has_payload; __u64 exception_payload;
};
struct pyvmm_xen_attr { __u16 type; __u16 pad[3]; __u64 u[8]; };
struct pyvmm_pmu_event_filter { __u32 action; __u32 nevents; __u32 fixed_counter_bitmap; __u32 flags; __u32 pad[4]; };
_Static_assert(sizeof(struct pyvmm_ioapic_state) == sizeof(struct kvm_ioapic_state), "ioapic");
_Static_assert(sizeof(struct pyvmm_irqchip) == sizeof(struct kvm_irqchip), "irqchip");
_Static_assert(sizeof(struct pyvmm_vcpu_events) == sizeof(struct kvm_vcpu_events), "vcpu_events");
_Static_assert(offsetof(struct pyvmm_vcpu_events, exception_payload)
               == offsetof(struct kvm_vcpu_events, exception_payload), "vcpu_events payload");
_Static_assert(offsetof(struct pyvmm_vcpu_events, smi) == offsetof(struct kvm_vcpu_events, smi), "vcpu_events smi");
_Static_assert(sizeof(struct pyvmm_xen_attr) == sizeof(struct kvm_xen_hvm_attr), "xen_hvm_attr");
_Static_assert(sizeof(struct pyvmm_xen_attr) == sizeof(struct kvm_xen_vcpu_attr), "xen_vcpu_attr");
_Static_assert(sizeof(struct pyvmm_pmu_event_filter) == sizeof(struct kvm_pmu_event_filter), "pmu_event_filter");
#define PYVMM_RUN_SYNC_SREGS offsetof(struct kvm_run, s.regs.sregs)
#define PYVMM_RUN_SYNC_EVENTS offsetof(struct kvm_run, s.regs.events)
