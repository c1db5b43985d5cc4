struct arm64_regs {
    __u64 regs[31]; __u64 sp; __u64 pc; __u64 pstate;
    __u64 sp_el1; __u64 elr_el1; __u64 spsr[5]; __u64 pad;
    __u64 vregs[64]; __u32 fpsr; __u32 fpcr; __u32 reserved[2];
};
struct arm64_vcpu_init { __u32 target; __u32 features[7]; };
struct arm64_guest_debug_arch { __u64 dbg_bcr[16]; __u64 dbg_bvr[16]; __u64 dbg_wcr[16]; __u64 dbg_wvr[16]; };
struct arm64_guest_debug { __u32 control; __u32 pad; struct arm64_guest_debug_arch arch; };
struct arm64_debug_exit_arch { __u32 hsr; __u32 hsr_high; __u64 far; };
struct arm64_sync_regs { __u64 device_irq_level; };
struct arm64_pmu_event_filter { __u16 base_event; __u16 nevents; __u8 action; __u8 pad[3]; };
struct arm64_vcpu_exception {
    __u8 serror_pending; __u8 serror_has_esr; __u8 ext_dabt_pending; __u8 pad[5]; __u64 serror_esr;
};
struct arm64_vcpu_events { struct arm64_vcpu_exception exception; __u32 reserved[12]; };
struct arm64_copy_mte_tags { __u64 guest_ipa; __u64 length; void *addr; __u64 flags; __u64 reserved[2]; };
struct arm64_device_addr { __u64 id; __u64 addr; };
struct arm64_counter_offset { __u64 counter_offset; __u64 reserved; };
struct arm64_smccc_filter { __u32 base; __u32 nr_functions; __u8 action; __u8 pad[15]; };
struct arm64_reg_mask_range { __u64 addr; __u32 range; __u32 reserved[13]; };
