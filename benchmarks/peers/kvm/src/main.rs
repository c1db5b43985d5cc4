//! The peer in Rust: the same guest as loop.c, run by kvm-ioctls. Usage: kvm-loop pio|mmio|ioeventfd COUNT
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit};
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

fn main() {
    let kind = std::env::args().nth(1).unwrap_or("pio".into());
    let count: u32 = std::env::args().nth(2).map_or(20000, |text| text.parse().unwrap());
    let mut code: Vec<u8> = match kind.as_str() {
        "mmio" => vec![0xa2, 0x00, 0xf0, 0xeb, 0xfb],
        "ioeventfd" => vec![0x66, 0xb9, 0, 0, 0, 0, 0xe6, 0x10, 0x66, 0x49, 0x75, 0xfa, 0xf4],
        _ => vec![0xe6, 0x10, 0xeb, 0xfc],
    };
    if kind == "ioeventfd" {
        code[2..6].copy_from_slice(&count.to_le_bytes());
    }
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    // SAFETY: the anonymous mapping lives until the process ends, longer than the VM
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(), 0x10000, libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0,
        ) as *mut u8;
        std::ptr::copy_nonoverlapping(code.as_ptr(), memory.add(0x1000), code.len());
        vm.set_user_memory_region(kvm_userspace_memory_region {
            slot: 0, flags: 0, guest_phys_addr: 0, memory_size: 0x10000, userspace_addr: memory as u64,
        }).unwrap();
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (sregs.ds.base, sregs.ds.selector) = (0x20000, 0x2000);
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs).unwrap();
    let runs = if kind == "ioeventfd" {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        vm.register_ioevent(&event, &IoEventAddress::Pio(0x10), NoDatamatch).unwrap();
        std::mem::forget(event);
        1
    } else {
        count
    };
    let mut sum = 0u64;
    let start = Instant::now();
    for _ in 0..runs {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(port, data) => sum += u64::from(port) + u64::from(data[0]),
            VcpuExit::MmioWrite(address, data) => sum += address + u64::from(data[0]),
            _ => (),
        }
    }
    let spent = start.elapsed().as_nanos();
    std::hint::black_box(sum);
    println!("{spent}");
}
