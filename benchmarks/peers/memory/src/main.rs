//! The operations of benchmarks/memory.py through the vm-memory crate; prints "name nanoseconds" a line.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::time::Instant;

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory, VolatileSlice};

const REGION: usize = 0x8000_0000;
const ACCESS: usize = 0x200;

#[repr(C)]
#[derive(Copy, Clone, Default)]
struct Small(u32, u32);
#[repr(C)]
#[derive(Copy, Clone, Default)]
struct Big([u64; 12]);
// SAFETY: integers without padding.
unsafe impl ByteValued for Small {}
// SAFETY: integers without padding.
unsafe impl ByteValued for Big {}

/// The least time of one call, in nanoseconds, over many short runs.
fn best<R>(name: &str, mut work: impl FnMut() -> R) {
    let mut least = f64::MAX;
    let mut count = 1;
    for round in 0..60 {
        let begin = Instant::now();
        for _ in 0..count {
            black_box(work());
        }
        let spent = begin.elapsed().as_nanos() as f64;
        if round < 20 && spent < 200_000.0 {
            count *= 2;
            continue;
        }
        least = least.min(spent / count as f64);
    }
    println!("{name} {least:.2}");
}

fn main() {
    let regions: Vec<_> = (0..8).map(|i| (GuestAddress(i * REGION as u64), REGION)).collect();
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
    let mut image: Vec<u8> = (0..ACCESS).map(|i| i as u8).collect();
    let mut buffer = [0u8; ACCESS];
    let mut zero = File::open("/dev/zero").unwrap();
    let mut null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    for (place, region, cross) in [("first", 0u64, false), ("cross_0", 0, true), ("cross_6", 6, true), ("last", 7, false)] {
        let at = |size: usize| {
            GuestAddress(if cross { REGION as u64 * (region + 1) - size as u64 / 2 } else { REGION as u64 * region })
        };
        let addr = at(ACCESS);
        let m = black_box(&memory);
        best(&format!("read_from/{place}"), || m.read_volatile_from(addr, &mut image.as_slice(), ACCESS).unwrap());
        best(&format!("read_from_file/{place}"), || m.read_volatile_from(addr, &mut zero, ACCESS).unwrap());
        best(&format!("read_exact_from/{place}"), || m.read_exact_volatile_from(addr, &mut image.as_slice(), ACCESS).unwrap());
        best(&format!("read_entire_slice_from/{place}"), || m.read_slice(&mut buffer, addr).unwrap());
        best(&format!("read_slice_from/{place}"), || m.read(&mut buffer, addr).unwrap());
        best(&format!("read_small_obj/{place}"), || m.read_obj::<Small>(at(8)).unwrap());
        best(&format!("read_big_obj/{place}"), || m.read_obj::<Big>(at(96)).unwrap());
        best(&format!("write_to/{place}"), || m.write_volatile_to(addr, &mut image.as_mut_slice(), ACCESS).unwrap());
        best(&format!("write_to_file/{place}"), || m.write_volatile_to(addr, &mut null, ACCESS).unwrap());
        best(&format!("write_exact_to/{place}"), || m.write_all_volatile_to(addr, &mut image.as_mut_slice(), ACCESS).unwrap());
        best(&format!("write_entire_slice_to/{place}"), || m.write_slice(&buffer, addr).unwrap());
        best(&format!("write_slice_to/{place}"), || m.write(&buffer, addr).unwrap());
        best(&format!("write_small_obj/{place}"), || m.write_obj(Small(1, 2), at(8)).unwrap());
        best(&format!("write_big_obj/{place}"), || m.write_obj(Big([3; 12]), at(96)).unwrap());
    }
    let many: Vec<_> = (0..256).map(|i| (GuestAddress(i << 20), 1usize << 20)).collect();
    let many = GuestMemoryMmap::<()>::from_ranges(&many).unwrap();
    best("find_region_256", || {
        for i in 0..256u64 {
            black_box(many.find_region(black_box(GuestAddress(i << 20))).unwrap());
        }
    });
    let (mut a, mut b) = (vec![0xa5u8; 10240], vec![0u8; 10240]);
    let (mut bytes, mut words) = ([0u8; 1024], [0u16; 512]);
    let whole = VolatileSlice::from(&mut a[..]);
    let other = VolatileSlice::from(&mut b[..]);
    let kib = whole.get_slice(0, 1024).unwrap();
    let half = whole.get_slice(0, 512).unwrap();
    best("volatile_copy_to_u8", || kib.copy_to(black_box(&mut bytes[..])));
    best("volatile_copy_from_u8", || kib.copy_from(black_box(&bytes[..])));
    best("volatile_copy_to_u16", || half.copy_to(black_box(&mut words[..])));
    best("volatile_copy_from_u16", || half.copy_from(black_box(&words[..])));
    best("volatile_copy_to_volatile_slice", || black_box(whole).copy_to_volatile_slice(other));
    for size in [64usize << 10, 1 << 20, 16 << 20] {
        let mut large = vec![1u8; size];
        memory.write_slice(&large, GuestAddress(0)).unwrap();
        best(&format!("bulk_write_{size}"), || memory.write_slice(&large, GuestAddress(0)).unwrap());
        best(&format!("bulk_read_{size}"), || memory.read_slice(&mut large, GuestAddress(0)).unwrap());
    }
}
