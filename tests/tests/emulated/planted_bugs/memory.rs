//! Addresses and contents.

use device::bulk::{self, Bytes};
use device::emulator::Cause;
use device::mbarrier::{self, Barrier};
use device::shared::dynamic_shared_mem;
use device::{global, thread};

use super::finds;

#[test]
fn an_off_by_one_row() {
    finds(
        |input, output, bug| {
            let row = thread::thread_idx_x() + u32::from(bug);
            // SAFETY: the emulator checks every access.
            unsafe {
                global::store_u32(
                    output.add(row as usize),
                    global::load_u32(input.add(row as usize)),
                )
            };
        },
        Cause::OutOfBounds,
        &[
            "thread 127",
            "memory.rs",
            "out of bounds: byte 512 of buffer `output`, which has 512 bytes",
        ],
    );
}

#[test]
fn a_row_that_nobody_writes() {
    finds(
        |_, output, bug| {
            let row = thread::thread_idx_x();
            if !(bug && row == 77) {
                // SAFETY: the emulator checks every access.
                unsafe { global::store_u32(output.add(row as usize), row) };
            }
        },
        Cause::Unwritten,
        &["element 77 of buffer `output` was never written"],
    );
}

#[test]
fn two_threads_that_write_one_row() {
    finds(
        |_, output, bug| {
            let index = thread::thread_idx_x();
            let row = if bug && index == 100 { 3 } else { index };
            // SAFETY: the emulator checks every access.
            unsafe { global::store_u32(output.add(row as usize), index) };
        },
        Cause::Race,
        &["of buffer `output`", "thread 3", "thread 100", "nothing orders the two"],
    );
}

#[test]
fn an_input_that_is_written() {
    finds(
        |input, output, bug| {
            let index = thread::thread_idx_x() as usize;
            // SAFETY: the emulator checks every access.
            unsafe {
                let to = if bug { input.cast_mut() } else { output };
                global::store_u32(to.add(index), 1);
            }
        },
        Cause::Constant,
        &["buffer `input`, which is constant"],
    );
}

#[test]
fn a_page_id_beyond_the_pool() {
    finds(
        |input, output, bug| {
            let base = dynamic_shared_mem::<u32>();
            let barrier = Barrier::at(base.offset(4096).cast());
            let bytes = Bytes::new(4096);
            let index = thread::thread_idx_x();
            // Pages of 4 KiB; the pool has four.
            let page = if bug { 0x00ff_ffff } else { 2 };
            // SAFETY: the emulator checks every access.
            unsafe {
                if index == 0 {
                    mbarrier::init(barrier, 1);
                    mbarrier::fence_init();
                    mbarrier::arrive_expect_tx(barrier, bytes);
                    bulk::copy_global_to_shared(base, input.add(page * 1024), bytes, barrier);
                }
                thread::sync_threads();
                mbarrier::wait_parity(barrier, 0);
                global::store_u32(output.add(index as usize), base.at(index).load());
            }
        },
        Cause::OutOfBounds,
        &["thread 0", "4096 bytes out of bounds", "of buffer `input`, which has 16384 bytes"],
    );
}

#[test]
fn a_vector_at_an_odd_place() {
    finds(
        |input, output, bug| {
            let index = thread::thread_idx_x() as usize;
            // SAFETY: the emulator checks every access.
            unsafe {
                let from = input.add(4 * index + usize::from(bug));
                global::store_u32(output.add(index), global::load_v4_u32(from)[0]);
            }
        },
        Cause::Misaligned,
        &["global address", "not a multiple of 16"],
    );
}

#[test]
fn shared_memory_that_nobody_has_written() {
    finds(
        |_, output, bug| {
            let index = thread::thread_idx_x();
            let own = dynamic_shared_mem::<u32>().at(index);
            // SAFETY: the emulator checks every access.
            unsafe {
                if !(bug && index == 9) {
                    own.store(index);
                }
                global::store_u32(output.add(index as usize), own.load());
            }
        },
        Cause::Unwritten,
        &["thread 9", "+0x24", "nothing has written"],
    );
}

#[test]
fn an_index_beyond_an_array_of_registers() {
    finds(
        |input, output, bug| {
            let index = thread::thread_idx_x() as usize;
            // SAFETY: the emulator checks every access.
            unsafe {
                let registers = [global::load_u32(input), 1, 2, 3];
                let at = if bug { index } else { index % 4 };
                global::store_u32(output.add(index), registers[at]);
            }
        },
        Cause::Panic,
        &["the kernel panicked: index out of bounds"],
    );
}
