//! The peer in Rust: virtio-queue's own benchmark. Prints nanoseconds per operation.
//! Usage: queue-loop single|single-indirect|multiple|multiple-indirect|used ROUNDS
//! One round is 1 chain of 128 descriptors, 128 chains of 1, or 128 chains given back.
use std::hint::black_box;
use std::time::{Duration, Instant};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().expect("what to measure");
    let rounds: u32 = arguments.next().expect("how often").parse().unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000_0000)]).unwrap();
    let mut mock = MockSplitQueue::new(&memory, 256);
    let (chains, length) = if kind.starts_with("single") { (1, 128) } else { (128, 1) };
    if kind != "used" {
        for _ in 0..chains {
            if kind.ends_with("indirect") {
                mock.add_indirect_chain(length).unwrap();
            } else {
                mock.add_chain(length).unwrap();
            }
        }
    }
    let mut queue: Queue = mock.create_queue().unwrap();
    let mut took = Duration::ZERO;
    for _ in 0..rounds {
        queue.set_next_avail(0);
        let start = Instant::now();
        if kind == "used" {
            for _ in 0..128 {
                queue.add_used(&memory, black_box(123), black_box(0x1000)).unwrap();
            }
        } else {
            let mut seen = 0;
            black_box(&mut queue).iter(&memory).unwrap().for_each(|chain| chain.for_each(|_| seen += 1));
            assert_eq!(black_box(seen), 128);
        }
        took += start.elapsed();
    }
    println!("{}", took.as_nanos() as f64 / f64::from(rounds));
}
