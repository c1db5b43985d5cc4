//! The peer in Rust: vm-device's bus and vm-superio's serial port. Prints nanoseconds per operation.
//! Usage: device-loop lookup|dispatch DEVICES COUNT, or device-loop transmit|receive 0 COUNT
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioBus, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};
use vm_device::MutDeviceMmio;
use vm_superio::{Serial, Trigger};

struct Silent;

impl MutDeviceMmio for Silent {
    fn mmio_read(&mut self, _base: MmioAddress, _offset: MmioAddressOffset, data: &mut [u8]) {
        data[0] = 1;
    }
    fn mmio_write(&mut self, _base: MmioAddress, _offset: MmioAddressOffset, _data: &[u8]) {}
}

struct Quiet;

impl Trigger for Quiet {
    type E = std::io::Error;
    fn trigger(&self) -> Result<(), Self::E> {
        Ok(())
    }
}

fn address(number: u64, devices: u64) -> MmioAddress {
    MmioAddress(0x1000_0000 + number % devices * 0x1000 + 4)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().expect("what to measure");
    let devices: u64 = arguments.next().expect("how many devices").parse().unwrap();
    let count: u64 = arguments.next().expect("how often").parse().unwrap();
    let range = |number: u64| MmioRange::new(MmioAddress(0x1000_0000 + number * 0x1000), 0x1000).unwrap();
    let mut data = [0u8; 4];
    let start;
    match kind.as_str() {
        "lookup" => {
            let mut bus: MmioBus<u64> = MmioBus::new();
            for number in 0..devices {
                bus.register(range(number), number).unwrap();
            }
            start = Instant::now();
            for number in 0..count {
                black_box(bus.device(black_box(address(number, devices))).unwrap());
            }
        }
        "dispatch" => {
            let mut manager = IoManager::new();
            for number in 0..devices {
                manager.register_mmio(range(number), Arc::new(Mutex::new(Silent))).unwrap();
            }
            start = Instant::now();
            for number in 0..count {
                manager.mmio_read(black_box(address(number, devices)), &mut data).unwrap();
            }
        }
        "transmit" => {
            let mut serial = Serial::new(Quiet, std::io::sink());
            start = Instant::now();
            for _ in 0..count {
                serial.write(0, black_box(b'x')).unwrap();
            }
        }
        "receive" => {
            let mut serial = Serial::new(Quiet, std::io::sink());
            start = Instant::now();
            for _ in 0..count / 64 {
                serial.enqueue_raw_bytes(black_box(&[b'x'; 64])).unwrap();
                for _ in 0..64 {
                    black_box(serial.read(0));
                }
            }
        }
        other => panic!("{other} is not measured"),
    }
    println!("{}", start.elapsed().as_nanos() as f64 / count as f64);
}
