/* Our copies of arm64's structures are the kernel's. */
#define SAME(ours, theirs) _Static_assert(sizeof(struct ours) == sizeof(struct theirs), #theirs)
#define AT(ours, field, theirs, their_field) \
    _Static_assert(offsetof(struct ours, field) == offsetof(struct theirs, their_field), #theirs "." #their_field)
SAME(arm64_regs, kvm_regs);
AT(arm64_regs, sp, kvm_regs, regs.sp);
AT(arm64_regs, pc, kvm_regs, regs.pc);
AT(arm64_regs, pstate, kvm_regs, regs.pstate);
AT(arm64_regs, sp_el1, kvm_regs, sp_el1);
AT(arm64_regs, elr_el1, kvm_regs, elr_el1);
AT(arm64_regs, spsr, kvm_regs, spsr);
AT(arm64_regs, vregs, kvm_regs, fp_regs.vregs);
AT(arm64_regs, fpsr, kvm_regs, fp_regs.fpsr);
AT(arm64_regs, fpcr, kvm_regs, fp_regs.fpcr);
SAME(arm64_vcpu_init, kvm_vcpu_init);
AT(arm64_vcpu_init, features, kvm_vcpu_init, features);
SAME(arm64_guest_debug_arch, kvm_guest_debug_arch);
AT(arm64_guest_debug_arch, dbg_bvr, kvm_guest_debug_arch, dbg_bvr);
AT(arm64_guest_debug_arch, dbg_wcr, kvm_guest_debug_arch, dbg_wcr);
AT(arm64_guest_debug_arch, dbg_wvr, kvm_guest_debug_arch, dbg_wvr);
SAME(arm64_guest_debug, kvm_guest_debug);
AT(arm64_guest_debug, arch, kvm_guest_debug, arch);
SAME(arm64_debug_exit_arch, kvm_debug_exit_arch);
AT(arm64_debug_exit_arch, far, kvm_debug_exit_arch, far);
SAME(arm64_sync_regs, kvm_sync_regs);
SAME(arm64_pmu_event_filter, kvm_pmu_event_filter);
AT(arm64_pmu_event_filter, action, kvm_pmu_event_filter, action);
SAME(arm64_vcpu_events, kvm_vcpu_events);
AT(arm64_vcpu_events, exception.ext_dabt_pending, kvm_vcpu_events, exception.ext_dabt_pending);
AT(arm64_vcpu_events, exception.serror_esr, kvm_vcpu_events, exception.serror_esr);
SAME(arm64_copy_mte_tags, kvm_arm_copy_mte_tags);
AT(arm64_copy_mte_tags, addr, kvm_arm_copy_mte_tags, addr);
AT(arm64_copy_mte_tags, flags, kvm_arm_copy_mte_tags, flags);
SAME(arm64_device_addr, kvm_arm_device_addr);
#ifdef KVM_ARM_VM_SMCCC_FILTER
SAME(arm64_counter_offset, kvm_arm_counter_offset);
SAME(arm64_smccc_filter, kvm_smccc_filter);
AT(arm64_smccc_filter, action, kvm_smccc_filter, action);
#endif
#ifdef KVM_ARM_FEATURE_ID_RANGE
SAME(arm64_reg_mask_range, reg_mask_range);
AT(arm64_reg_mask_range, range, reg_mask_range, range);
#endif
#undef SAME
#undef AT
/* KVM_DIRTY_LOG_PAGE_OFFSET of headers before arm64 had the dirty ring is 0, and its rings lie where x86's do. */
#if KVM_DIRTY_LOG_PAGE_OFFSET == 0
#undef KVM_DIRTY_LOG_PAGE_OFFSET
#define KVM_DIRTY_LOG_PAGE_OFFSET 64
#endif
