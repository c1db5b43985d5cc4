struct riscv64_config {
    __u64 isa; __u64 zicbom_block_size; __u64 mvendorid; __u64 marchid; __u64 mimpid; __u64 zicboz_block_size;
    __u64 satp_mode;
};
struct riscv64_core {
    __u64 pc; __u64 ra; __u64 sp; __u64 gp; __u64 tp; __u64 t0; __u64 t1; __u64 t2; __u64 s0; __u64 s1;
    __u64 a0; __u64 a1; __u64 a2; __u64 a3; __u64 a4; __u64 a5; __u64 a6; __u64 a7;
    __u64 s2; __u64 s3; __u64 s4; __u64 s5; __u64 s6; __u64 s7; __u64 s8; __u64 s9; __u64 s10; __u64 s11;
    __u64 t3; __u64 t4; __u64 t5; __u64 t6;
    __u64 mode;
};
struct riscv64_csr {
    __u64 sstatus; __u64 sie; __u64 stvec; __u64 sscratch; __u64 sepc; __u64 scause; __u64 stval; __u64 sip;
    __u64 satp; __u64 scounteren; __u64 senvcfg;
};
struct riscv64_aia_csr {
    __u64 siselect; __u64 iprio1; __u64 iprio2; __u64 sieh; __u64 siph; __u64 iprio1h; __u64 iprio2h;
};
struct riscv64_smstateen_csr { __u64 sstateen0; };
struct riscv64_timer { __u64 frequency; __u64 time; __u64 compare; __u64 state; };
struct riscv64_sbi_sta { __u64 shmem_lo; __u64 shmem_hi; };
struct riscv64_f_ext_state { __u32 f[32]; __u32 fcsr; };
struct riscv64_d_ext_state { __u64 f[32]; __u32 fcsr; };
struct riscv64_guest_debug { __u32 control; __u32 pad; };
