struct kvm_regs {
    __u64 rax, rbx, rcx, rdx;
    __u64 rsi, rdi, rsp, rbp;
    __u64 r8, r9, r10, r11;
    __u64 r12, r13, r14, r15;
    __u64 rip, rflags;
    ...;
};
struct kvm_segment {
    __u64 base; __u32 limit; __u16 selector; __u8 type;
    __u8 present, dpl, db, s, l, g, avl;
    __u8 unusable; __u8 padding;
    ...;
};
struct kvm_dtable { __u64 base; __u16 limit; __u16 padding[3]; ...; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 interrupt_bitmap[4];
    ...;
};
struct kvm_sregs2 {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 flags;
    __u64 pdptrs[4];
    ...;
};
struct kvm_fpu {
    __u8 fpr[8][16];
    __u16 fcw; __u16 fsw; __u8 ftwx; __u8 pad1; __u16 last_opcode;
    __u64 last_ip; __u64 last_dp;
    __u8 xmm[16][16];
    __u32 mxcsr; __u32 pad2;
    ...;
};
struct kvm_lapic_state { char regs[1024]; ...; };
struct kvm_cpuid_entry2 {
    __u32 function; __u32 index; __u32 flags; __u32 eax; __u32 ebx; __u32 ecx; __u32 edx; __u32 padding[3];
    ...;
};
struct kvm_msr_entry { __u32 index; __u32 reserved; __u64 data; ...; };
struct kvm_msr_filter_range { __u32 flags; __u32 nmsrs; __u32 base; __u8 *bitmap; ...; };
struct kvm_msr_filter { __u32 flags; struct kvm_msr_filter_range ranges[16]; ...; };
struct kvm_pit_config { __u32 flags; __u32 pad[15]; ...; };
struct kvm_pit_channel_state {
    __u32 count; __u16 latched_count; __u8 count_latched; __u8 status_latched; __u8 status; __u8 read_state;
    __u8 write_state; __u8 write_latch; __u8 rw_mode; __u8 mode; __u8 bcd; __u8 gate; __s64 count_load_time;
    ...;
};
struct kvm_pit_state { struct kvm_pit_channel_state channels[3]; ...; };
struct kvm_pit_state2 { struct kvm_pit_channel_state channels[3]; __u32 flags; __u32 reserved[9]; ...; };
struct kvm_reinject_control { __u8 pit_reinject; __u8 reserved[31]; ...; };
struct kvm_pic_state {
    __u8 last_irr; __u8 irr; __u8 imr; __u8 isr; __u8 priority_add; __u8 irq_base; __u8 read_reg_select; __u8 poll;
    __u8 special_mask; __u8 init_state; __u8 auto_eoi; __u8 rotate_on_auto_eoi; __u8 special_fully_nested_mode;
    __u8 init4; __u8 elcr; __u8 elcr_mask;
    ...;
};
struct pyvmm_ioapic_state {
    __u64 base_address; __u32 ioregsel; __u32 id; __u32 irr; __u32 pad; __u64 redirtbl[24];
    ...;
};
struct pyvmm_irqchip { __u32 chip_id; __u32 pad; __u8 chip[512]; ...; };
struct pyvmm_vcpu_exception { __u8 injected; __u8 nr; __u8 has_error_code; __u8 pending; __u32 error_code; ...; };
struct pyvmm_vcpu_interrupt { __u8 injected; __u8 nr; __u8 soft; __u8 shadow; ...; };
struct pyvmm_vcpu_nmi { __u8 injected; __u8 pending; __u8 masked; __u8 pad; ...; };
struct pyvmm_vcpu_smi { __u8 smm; __u8 pending; __u8 smm_inside_nmi; __u8 latched_init; ...; };
struct pyvmm_vcpu_triple_fault { __u8 pending; ...; };
struct pyvmm_vcpu_events {
    struct pyvmm_vcpu_exception exception;
    struct pyvmm_vcpu_interrupt interrupt;
    struct pyvmm_vcpu_nmi nmi;
    __u32 sipi_vector; __u32 flags;
    struct pyvmm_vcpu_smi smi;
    struct pyvmm_vcpu_triple_fault triple_fault;
    __u8 reserved[26]; __u8 exception_has_payload; __u64 exception_payload;
    ...;
};
struct kvm_debugregs { __u64 db[4]; __u64 dr6; __u64 dr7; __u64 flags; __u64 reserved[9]; ...; };
struct kvm_guest_debug_arch { __u64 debugreg[8]; ...; };
struct kvm_guest_debug { __u32 control; __u32 pad; struct kvm_guest_debug_arch arch; ...; };
struct kvm_debug_exit_arch { __u32 exception; __u32 pad; __u64 pc; __u64 dr6; __u64 dr7; ...; };
struct kvm_xcr { __u32 xcr; __u32 reserved; __u64 value; ...; };
struct kvm_xcrs { __u32 nr_xcrs; __u32 flags; struct kvm_xcr xcrs[16]; __u64 padding[16]; ...; };
struct kvm_clock_data {
    __u64 clock; __u32 flags; __u32 pad0; __u64 realtime; __u64 host_tsc; __u32 pad[4];
    ...;
};
struct kvm_tpr_access_ctl { __u32 enabled; __u32 flags; __u32 reserved[8]; ...; };
struct kvm_vapic_addr { __u64 vapic_addr; ...; };
struct kvm_x86_mce {
    __u64 status; __u64 addr; __u64 misc; __u64 mcg_status; __u8 bank; __u8 pad1[7]; __u64 pad2[3];
    ...;
};
struct kvm_xen_hvm_config {
    __u32 flags; __u32 msr; __u64 blob_addr_32; __u64 blob_addr_64; __u8 blob_size_32; __u8 blob_size_64; __u8 pad2[30];
    ...;
};
struct pyvmm_xen_attr { __u16 type; __u16 pad[3]; __u64 u[8]; ...; };
struct kvm_irq_routing_xen_evtchn { __u32 port; __u32 vcpu; __u32 priority; ...; };
struct kvm_hyperv_eventfd { __u32 conn_id; __s32 fd; __u32 flags; __u32 padding[3]; ...; };
struct kvm_enc_region { __u64 addr; __u64 size; ...; };
struct kvm_sev_cmd { __u32 id; __u64 data; __u32 error; __u32 sev_fd; ...; };
struct pyvmm_pmu_event_filter { __u32 action; __u32 nevents; __u32 fixed_counter_bitmap; __u32 flags; __u32 pad[4]; ...; };
