//! Copies and products that take effect later.

use device::bulk::{self, Bytes};
use device::emulator::Cause;
use device::mbarrier::{self, Barrier};
use device::shared::dynamic_shared_mem;
use device::wgmma::{self, Descriptor, Operand};
use device::{Bf16, async_copy, global, thread};

use super::{finds, finds_one_of};

/// What can be wrong with a ring of two stages of 512 bytes.
#[derive(Clone, Copy, PartialEq)]
enum Ring {
    WrongFullParity,
    NoEmptyWait,
    FewBytes,
    FewArrivals,
    NoFenceInit,
}

/// Thread 96 streams eight pieces of input through the ring; the first three warps add them up.
fn stream(input: *const u32, output: *mut u32, bug: Option<Ring>) {
    let has = |flaw| bug == Some(flaw);
    let base = dynamic_shared_mem::<u32>();
    let barriers = base.offset(1024).cast();
    let full = |stage: u32| Barrier::at(barriers.at(stage));
    let empty = |stage: u32| Barrier::at(barriers.at(2 + stage));
    let index = thread::thread_idx_x();
    // SAFETY: the emulator checks every access.
    unsafe {
        if index == 0 {
            for stage in 0..2 {
                mbarrier::init(full(stage), 1);
                mbarrier::init(empty(stage), if has(Ring::FewArrivals) { 97 } else { 96 });
            }
            if !has(Ring::NoFenceInit) {
                mbarrier::fence_init();
            }
        }
        thread::sync_threads();
        let mut sum = 0_u32;
        for turn in 0..8 {
            let (stage, parity) = (turn % 2, turn / 2 % 2);
            let at = base.at(128 * stage);
            if index == 96 {
                if !has(Ring::NoEmptyWait) {
                    mbarrier::wait_parity(empty(stage), parity ^ 1);
                }
                let bytes = Bytes::new(512);
                let expected = if has(Ring::FewBytes) { Bytes::new(528) } else { bytes };
                mbarrier::arrive_expect_tx(full(stage), expected);
                bulk::copy_global_to_shared(at, input.add(128 * turn as usize), bytes, full(stage));
            } else if index < 96 {
                mbarrier::wait_parity(full(stage), parity ^ u32::from(has(Ring::WrongFullParity)));
                sum = sum.wrapping_add(at.at(index).load());
                mbarrier::arrive(empty(stage));
            }
        }
        global::store_u32(output.add(index as usize), sum);
    }
}

#[test]
fn a_wrong_mbarrier_parity() {
    // Reads that the passed wait did not order, or, once a phase is complete, a wait for the next.
    finds_one_of(
        |input, output, bug| stream(input, output, bug.then_some(Ring::WrongFullParity)),
        &[Cause::Race, Cause::Unwritten, Cause::Deadlock],
        &["parity 1 of the mbarrier at +0x4", "asynchronous.rs"],
    );
}

#[test]
fn a_stage_filled_before_it_is_empty() {
    // No race with every seed: mostly the copies run ahead of their barrier's phase.
    finds_one_of(
        |input, output, bug| stream(input, output, bug.then_some(Ring::NoEmptyWait)),
        &[Cause::Race, Cause::Barrier, Cause::Deadlock],
        &[],
    );
}

#[test]
fn an_mbarrier_that_waits_for_more_bytes_than_are_copied() {
    finds(
        |input, output, bug| stream(input, output, bug.then_some(Ring::FewBytes)),
        Cause::Deadlock,
        &["threads 0-95: parity 0 of the mbarrier at +0x400", "0 of 1 arrivals and 16 bytes"],
    );
}

#[test]
fn an_mbarrier_that_waits_for_more_threads_than_arrive() {
    finds(
        |input, output, bug| stream(input, output, bug.then_some(Ring::FewArrivals)),
        Cause::Deadlock,
        &["threads 96: parity 0 of the mbarrier at +0x410", "1 of 97 arrivals"],
    );
}

#[test]
fn an_mbarrier_that_the_async_proxy_does_not_see() {
    finds(
        |input, output, bug| stream(input, output, bug.then_some(Ring::NoFenceInit)),
        Cause::ProxyFence,
        &["a bulk copy reports to the mbarrier at +0x400", "fence_init"],
    );
}

/// What can be wrong with a product of what threads have stored.
#[derive(Clone, Copy, PartialEq)]
enum Product {
    NoProxyFence,
    NoWgmmaFence,
    NoWait,
    EarlyWrite,
    NoSettle,
}

fn product(input: *const u32, output: *mut u32, bug: Option<Product>) {
    let has = |flaw| bug == Some(flaw);
    let base = dynamic_shared_mem::<u32>();
    let index = thread::thread_idx_x();
    let operand = |at: u32| Operand {
        descriptor: Descriptor::new(base.offset(at), 128, 256),
        step_bytes: 256,
    };
    // SAFETY: the emulator checks every access.
    unsafe {
        // 64 x 16 of a, 8 x 16 of b.
        let mut word = index;
        while word < 64 * 8 + 8 * 8 {
            let value = global::load_u32(input.add(word as usize));
            base.at(word).store(value & 0x3f80_3f80);
            word += 128;
        }
        if !has(Product::NoProxyFence) {
            bulk::fence_proxy_async_shared();
        }
        thread::sync_threads();
        let mut d = [0.0_f32; 4];
        if !has(Product::NoWgmmaFence) {
            wgmma::fence();
        }
        wgmma::mma_shared::<Bf16, false, false, 1, _>(&mut d, operand(0), operand(2048), false);
        wgmma::commit_group();
        if has(Product::EarlyWrite) {
            base.at(index).store(0);
        }
        if has(Product::NoWait) {
            wgmma::wait_group::<1>();
        } else {
            wgmma::wait_group::<0>();
        }
        if !has(Product::NoSettle) {
            wgmma::settle(&mut d);
        }
        global::store_f32(output.cast::<f32>().add(index as usize), d[0]);
    }
}

#[test]
fn a_missing_proxy_fence_before_a_product() {
    finds(
        |input, output, bug| product(input, output, bug.then_some(Product::NoProxyFence)),
        Cause::ProxyFence,
        &["wgmma reads shared memory", "asynchronous.rs", "without a fence.proxy.async between"],
    );
}

#[test]
fn a_missing_wgmma_fence() {
    finds(
        |input, output, bug| product(input, output, bug.then_some(Product::NoWgmmaFence)),
        Cause::Unwaited,
        &["without a wgmma.fence"],
    );
}

#[test]
fn a_product_that_is_not_waited_for() {
    finds(
        |input, output, bug| product(input, output, bug.then_some(Product::NoWait)),
        Cause::Unwaited,
        &["before a wait_group covers the wgmma at"],
    );
}

#[test]
fn accumulators_used_without_settling_them() {
    finds(
        |input, output, bug| product(input, output, bug.then_some(Product::NoSettle)),
        Cause::Unwaited,
        &["uses an accumulator of the wgmma at"],
    );
}

#[test]
fn an_operand_overwritten_before_the_product_is_waited_for() {
    finds(
        |input, output, bug| product(input, output, bug.then_some(Product::EarlyWrite)),
        Cause::Race,
        &["wgmma", "shared memory at +0x", "nothing orders the two"],
    );
}

#[test]
fn an_asynchronous_copy_that_is_not_waited_for() {
    finds(
        |input, output, bug| {
            let index = thread::thread_idx_x();
            let own = dynamic_shared_mem::<[u32; 4]>().at(index);
            // SAFETY: the emulator checks every access.
            unsafe {
                own.store([0; 4]);
                async_copy::copy_16(own.cast(), input.add(4 * index as usize));
                async_copy::commit_group();
                if bug {
                    async_copy::wait_group::<1>();
                } else {
                    async_copy::wait_group::<0>();
                }
                global::store_u32(output.add(index as usize), own.load()[0]);
            }
        },
        Cause::Race,
        &["asynchronous copy", "nothing orders the two"],
    );
}

#[test]
fn an_exit_before_shared_memory_has_been_copied_out() {
    finds(
        |_, output, bug| {
            let base = dynamic_shared_mem::<u32>();
            let index = thread::thread_idx_x();
            // SAFETY: the emulator checks every access.
            unsafe {
                base.at(index).store(index);
                bulk::fence_proxy_async_shared();
                thread::sync_threads();
                if index == 0 {
                    bulk::copy_shared_to_global(output, base, Bytes::new(512));
                    bulk::commit_group();
                    if !bug {
                        bulk::wait_group_read::<0>();
                    }
                }
            }
        },
        Cause::Unwaited,
        &["exits without having waited for its bulk copy"],
    );
}
