/* Our copies of RISC-V's structures are the kernel's, of which older headers have the first fields only. */
#define AT(ours, field, theirs, their_field) \
    _Static_assert(offsetof(struct ours, field) == offsetof(struct theirs, their_field), #theirs "." #their_field)
#define SAME(ours, theirs) _Static_assert(sizeof(struct ours) == sizeof(struct theirs), #theirs)
#define BEGINS(ours, theirs) _Static_assert(sizeof(struct theirs) <= sizeof(struct ours), #theirs)
BEGINS(riscv64_config, kvm_riscv_config);
AT(riscv64_config, isa, kvm_riscv_config, isa);
AT(riscv64_config, zicbom_block_size, kvm_riscv_config, zicbom_block_size);
SAME(riscv64_core, kvm_riscv_core);
AT(riscv64_core, sp, kvm_riscv_core, regs.sp);
AT(riscv64_core, a0, kvm_riscv_core, regs.a0);
AT(riscv64_core, s11, kvm_riscv_core, regs.s11);
AT(riscv64_core, t6, kvm_riscv_core, regs.t6);
AT(riscv64_core, mode, kvm_riscv_core, mode);
BEGINS(riscv64_csr, kvm_riscv_csr);
AT(riscv64_csr, scause, kvm_riscv_csr, scause);
AT(riscv64_csr, satp, kvm_riscv_csr, satp);
AT(riscv64_csr, scounteren, kvm_riscv_csr, scounteren);
SAME(riscv64_timer, kvm_riscv_timer);
AT(riscv64_timer, state, kvm_riscv_timer, state);
SAME(riscv64_f_ext_state, __riscv_f_ext_state);
AT(riscv64_f_ext_state, fcsr, __riscv_f_ext_state, fcsr);
SAME(riscv64_d_ext_state, __riscv_d_ext_state);
AT(riscv64_d_ext_state, fcsr, __riscv_d_ext_state, fcsr);
SAME(riscv64_guest_debug, kvm_guest_debug);
#ifdef KVM_REG_RISCV_CSR_AIA
SAME(riscv64_aia_csr, kvm_riscv_aia_csr);
AT(riscv64_aia_csr, iprio2h, kvm_riscv_aia_csr, iprio2h);
#endif
#ifdef KVM_REG_RISCV_CSR_SMSTATEEN
SAME(riscv64_smstateen_csr, kvm_riscv_smstateen_csr);
#endif
#ifdef KVM_REG_RISCV_SBI_STA
SAME(riscv64_sbi_sta, kvm_riscv_sbi_sta);
#endif
#undef SAME
#undef AT
#undef BEGINS
/* as on arm64 */
#if KVM_DIRTY_LOG_PAGE_OFFSET == 0
#undef KVM_DIRTY_LOG_PAGE_OFFSET
#define KVM_DIRTY_LOG_PAGE_OFFSET 64
#endif
