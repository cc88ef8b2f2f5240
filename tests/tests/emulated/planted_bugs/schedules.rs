//! Many seeds, and the schedule of the first that fails.

use device::atomic::{self, Order, Scope};
use device::emulator::{Cause, Launch, Memory, Report, Schedule};
use device::shared::dynamic_shared_mem;
use device::{async_copy, thread, warp};

/// A block whose thread 0 fails if it is the last of two warps to take a ticket: some schedules alone show it.
fn tickets(launch: Launch) -> Result<(), Box<Report>> {
    let mut memory = Memory::new();
    let counter = memory.buffer("counter", &[0_u32]);
    launch.run(&mut memory, || {
        // SAFETY: the emulator checks every access.
        let ticket = unsafe {
            atomic::fetch_add_u32(counter.as_mut_ptr(), 1, Order::Relaxed, Scope::Device)
        };
        let is_first = thread::thread_idx_x() == 0;
        assert!(!is_first || ticket < 63, "thread 0 is last");
    })
}

/// A read of what an asynchronous copy brings, which is waited for or not.
fn copied(launch: Launch, waits: bool) -> Result<(), Box<Report>> {
    let mut memory = Memory::new();
    let input = memory.constant("input", &[3_u32; 256]);
    launch.shared_bytes(4096).run(&mut memory, || {
        let index = thread::thread_idx_x();
        let own = dynamic_shared_mem::<[u32; 4]>().at(index);
        // SAFETY: the emulator checks every access.
        unsafe {
            async_copy::copy_16(own.cast(), input.as_ptr().add(4 * index as usize));
            async_copy::commit_group();
            warp::sync_warp(warp::FULL_MASK);
            if waits {
                async_copy::wait_group::<0>();
            }
            own.load();
        }
    })
}

#[test]
fn a_kernel_without_a_bug_passes_under_all_seeds() {
    let launch = Launch::new([1, 1, 1], 64);
    launch.for_seeds(0..40, |launch| copied(launch, true)).unwrap();
}

#[test]
fn the_schedule_of_the_first_seed_that_fails_repeats_its_report() {
    let launch = Launch::new([1, 1, 1], 64);
    let report = launch.clone().for_seeds(0..1000, tickets).unwrap_err();
    assert_eq!(report.cause, Cause::Panic);
    assert!(report.message.contains("thread 0 is last"), "{report}");
    let before = launch.clone().for_seeds(0..report.seed, tickets);
    assert!(before.is_ok(), "an earlier seed fails as well");

    let text = report.schedule.as_ref().unwrap().to_string();
    assert!(report.to_string().ends_with(&text), "{report}");
    let schedule: Schedule = text.parse().unwrap();
    let again = tickets(launch.clone().replay(schedule.clone())).unwrap_err();
    assert_eq!(again.message, report.message);
    let seeded = tickets(launch.seed(report.seed)).unwrap_err();
    assert_eq!(seeded.message, report.message);
}

#[test]
fn a_schedule_repeats_when_copies_took_effect() {
    let launch = Launch::new([1, 1, 1], 64);
    for first in 0..16 {
        let copied = |launch| copied(launch, false);
        let report = launch.clone().for_seeds(first..first + 1, copied).unwrap_err();
        let schedule = report.schedule.clone().unwrap();
        let again = copied(launch.clone().replay(schedule)).unwrap_err();
        assert_eq!(
            (again.cause, &again.message, again.thread),
            (report.cause, &report.message, report.thread)
        );
    }
}

#[test]
fn a_schedule_of_another_kernel_is_refused() {
    let schedule: Schedule = "seed 0 block 0: 0/0 +b0".parse().unwrap();
    let report = tickets(Launch::new([1, 1, 1], 64).replay(schedule)).unwrap_err();
    assert_eq!(report.cause, Cause::Schedule, "{report}");
}
