typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed short __s16;
typedef signed int __s32;
typedef signed long long __s64;

struct kvm_userspace_memory_region {
    __u32 slot; __u32 flags; __u64 guest_phys_addr; __u64 memory_size; __u64 userspace_addr;
    ...;
};
struct kvm_userspace_memory_region2 {
    __u32 slot; __u32 flags; __u64 guest_phys_addr; __u64 memory_size; __u64 userspace_addr;
    __u64 guest_memfd_offset; __u32 guest_memfd; __u32 pad1; __u64 pad2[14];
    ...;
};
struct kvm_memory_attributes { __u64 address; __u64 size; __u64 attributes; __u64 flags; ...; };
struct kvm_create_guest_memfd { __u64 size; __u64 flags; __u64 reserved[6]; ...; };
struct kvm_pre_fault_memory { __u64 gpa; __u64 size; __u64 flags; __u64 padding[5]; ...; };
struct kvm_dirty_log { __u32 slot; __u32 padding1; union { void *dirty_bitmap; __u64 padding2; }; ...; };
struct kvm_clear_dirty_log {
    __u32 slot; __u32 num_pages; __u64 first_page; union { void *dirty_bitmap; __u64 padding2; };
    ...;
};
struct kvm_dirty_gfn { __u32 flags; __u32 slot; __u64 offset; ...; };
struct kvm_irq_level { union { __u32 irq; __s32 status; }; __u32 level; ...; };
struct kvm_irqfd { __u32 fd; __u32 gsi; __u32 flags; __u32 resamplefd; __u8 pad[16]; ...; };
struct kvm_ioeventfd {
    __u64 datamatch; __u64 addr; __u32 len; __s32 fd; __u32 flags; __u8 pad[36];
    ...;
};
struct kvm_msi { __u32 address_lo; __u32 address_hi; __u32 data; __u32 flags; __u32 devid; __u8 pad[12]; ...; };
struct kvm_enable_cap { __u32 cap; __u32 flags; __u64 args[4]; __u8 pad[64]; ...; };
struct kvm_create_device { __u32 type; __u32 fd; __u32 flags; ...; };
struct kvm_device_attr { __u32 flags; __u32 group; __u64 attr; __u64 addr; ...; };
struct kvm_one_reg { __u64 id; __u64 addr; ...; };
struct kvm_mp_state { __u32 mp_state; ...; };
struct kvm_coalesced_mmio_zone { __u64 addr; __u32 size; union { __u32 pad; __u32 pio; }; ...; };
struct kvm_coalesced_mmio { __u64 phys_addr; __u32 len; union { __u32 pad; __u32 pio; }; __u8 data[8]; ...; };
struct kvm_stats_header {
    __u32 flags; __u32 name_size; __u32 num_desc; __u32 id_offset; __u32 desc_offset; __u32 data_offset;
    ...;
};
struct kvm_interrupt { __u32 irq; ...; };
struct kvm_translation {
    __u64 linear_address; __u64 physical_address; __u8 valid; __u8 writeable; __u8 usermode; __u8 pad[5];
    ...;
};
