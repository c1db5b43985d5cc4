/* Numbers that contain the size of a structure which only arm64's headers define. */
#undef KVM_ARM_SET_DEVICE_ADDR
#undef KVM_ARM_VCPU_INIT
#undef KVM_ARM_PREFERRED_TARGET
#undef KVM_ARM_MTE_COPY_TAGS
#undef KVM_ARM_SET_COUNTER_OFFSET
#undef KVM_ARM_GET_REG_WRITABLE_MASKS
#define KVM_ARM_SET_DEVICE_ADDR _IOW(KVMIO, 0xab, struct arm64_device_addr)
#define KVM_ARM_VCPU_INIT _IOW(KVMIO, 0xae, struct arm64_vcpu_init)
#define KVM_ARM_PREFERRED_TARGET _IOR(KVMIO, 0xaf, struct arm64_vcpu_init)
#define KVM_ARM_MTE_COPY_TAGS _IOR(KVMIO, 0xb4, struct arm64_copy_mte_tags)
#define KVM_ARM_SET_COUNTER_OFFSET _IOW(KVMIO, 0xb5, struct arm64_counter_offset)
#define KVM_ARM_GET_REG_WRITABLE_MASKS _IOR(KVMIO, 0xb6, struct arm64_reg_mask_range)
