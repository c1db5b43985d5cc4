//! The operations of linux-loader's own benchmarks, and loads of the files named: prints "name nanoseconds" a line.
//!
//! loader-peer ELF_PVH VMLINUX BZIMAGE

use std::fs::File;
use std::hint::black_box;
use std::time::Instant;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MAGIC: u32 = 0x336e_c578;

/// The least time of one call, in nanoseconds.
fn best<R>(name: &str, rounds: u32, mut work: impl FnMut() -> R) {
    let mut least = f64::MAX;
    for _ in 0..rounds {
        let begin = Instant::now();
        black_box(work());
        least = least.min(begin.elapsed().as_nanos() as f64);
    }
    println!("{name} {least:.0}");
}

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 128 << 20)]).unwrap();
    let mut files: Vec<File> = paths.iter().map(|path| File::open(path).unwrap()).collect();
    best("load_elf_pvh", 2000, || Elf::load(&memory, None, &mut files[0], None).unwrap());
    best("load_vmlinux", 15, || Elf::load(&memory, None, &mut files[1], None).unwrap());
    best("load_bzimage", 15, || BzImage::load(&memory, None, &mut files[2], None).unwrap());
    best("configure_pvh", 2000, || {
        let info = hvm_start_info { magic: MAGIC, version: 1, memmap_entries: 1, memmap_paddr: 0x7000, ..Default::default() };
        let entry = hvm_memmap_table_entry { addr: 0, size: 128 << 20, type_: 1, reserved: 0 };
        let mut params = BootParams::new(&info, GuestAddress(0x6000));
        params.set_sections(&[entry], GuestAddress(0x7000));
        PvhBootConfigurator::write_bootparams(&params, &memory).unwrap()
    });
}
