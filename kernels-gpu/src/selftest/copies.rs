//! Loads and stores of every width, and asynchronous copies.

use super::{own_words, store_own_words};
use device::bulk::{self, Bytes};
use device::mbarrier::{self, Barrier};
use device::shared::dynamic_shared_mem;
use device::warp::FULL_MASK;
use device::{async_copy, global, thread, warp};
use kernel_macros::kernel;

/// 64 threads. `input: [64][4]`, 16 bytes a thread. `output: [64][4]`: the same after it went through shared
/// memory in one width and came back in another.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 64,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_shared_widths)
)]
#[inline(always)]
pub unsafe fn shared_widths(input: *const u32, output: *mut u32) {
    let own = dynamic_shared_mem::<[u32; 4]>().at(thread::thread_idx_x());
    let (pairs, floats) = (own.cast::<[u32; 2]>(), own.cast::<[f32; 2]>());
    let (doubles, halves) = (own.cast::<u64>(), own.cast::<u16>());
    // SAFETY: the caller's; the 16 bytes at `own` are this thread's.
    unsafe {
        own.store(own_words(input));
        let [low, high] = [doubles.load(), doubles.at(1).load()];
        doubles.store(high);
        doubles.at(1).store(low);
        // Now words 2, 3, 0, 1.
        let [a, b] = pairs.load();
        let [c, d] = floats.at(1).load();
        own.cast().store([c, d, f32::from_bits(a), f32::from_bits(b)]);
        // 0, 1, 2, 3; then the halves of word 1 change places.
        let [first, second] = [halves.at(2).load(), halves.at(3).load()];
        halves.at(2).store(second);
        halves.at(3).store(first);
        let [x, y]: [f32; 2] = [own.cast().load(), own.cast().at(1).load()];
        own.cast().at(1).store(x);
        own.cast().store(y.to_bits());
        let [p, q, r, s]: [f32; 4] = own.cast().load();
        floats.store([r, s]);
        pairs.at(1).store([p.to_bits(), q.to_bits()]);
        store_own_words(output, own.load());
    }
}

/// 64 threads. `input: [64][4]`, `output: [64][20]`: the thread's words loaded and stored in one width after the
/// other, as the code says.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 64,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_global_widths)
)]
#[inline(always)]
pub unsafe fn global_widths(input: *const u32, output: *mut u32) {
    let index = thread::thread_idx_x() as usize;
    // SAFETY: the caller's; vectors lie on multiples of their size.
    unsafe {
        let (from, to) = (input.add(4 * index), output.add(20 * index));
        global::store_v4_u32(to, global::load_v4_u32(from));
        global::store_v4_f32(to.add(4).cast(), global::load_nc_v4_f32(from.cast()));
        global::store_v2_u32(to.add(8), global::load_nc_v2_u32(from));
        global::store_v2_f32(to.add(10).cast(), global::load_v2_f32(from.add(2).cast()));
        global::store_u64(to.add(12).cast(), global::load_u64(from.cast()));
        global::store_u64(to.add(14).cast(), global::load_nc_u64(from.add(2).cast()));
        global::store_f32(to.add(16).cast(), global::load_f32(from.cast()));
        global::store_u32(to.add(17), global::load_nc_u32(from.add(1)));
        global::store_u16(to.add(18).cast(), global::load_u16(from.add(2).cast()));
        global::store_u16(to.add(18).cast::<u16>().add(1), global::load_nc_u16(from.cast()));
        global::store_f32(to.add(19).cast(), global::load_nc_f32(from.add(3).cast()));
    }
}

/// Words of each of the bulk copies.
const BULK: u32 = 256;

/// Two warps. `input: [4][256]` words, `output: [4][256]`: copied through shared memory by bulk copies, two
/// stages, the second warp adding 1 to each word.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 64,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_bulk_copies)
)]
#[inline(always)]
pub unsafe fn bulk_copies(input: *const u32, output: *mut u32) {
    let base = dynamic_shared_mem::<u32>();
    let barriers = base.at(2 * BULK).cast();
    let full = |stage: u32| Barrier::at(barriers.at(stage));
    let empty = |stage: u32| Barrier::at(barriers.at(2 + stage));
    let index = thread::thread_idx_x();
    // SAFETY: the caller's; the first warp's first lane fills a stage that is empty, the second warp reads one
    // that is full.
    unsafe {
        if index == 0 {
            for stage in 0..2 {
                mbarrier::init(full(stage), 1);
                mbarrier::init(empty(stage), 1);
            }
            mbarrier::fence_init();
        }
        thread::sync_threads();
        for turn in 0..4 {
            let (stage, parity) = (turn % 2, turn / 2 % 2);
            let at = base.at(BULK * stage);
            let place = BULK as usize * turn as usize;
            if index == 0 {
                mbarrier::wait_parity(empty(stage), parity ^ 1);
                let half = Bytes::of::<u32>(BULK / 2);
                mbarrier::arrive_expect_tx(full(stage), half + half);
                bulk::copy_global_to_shared(at, input.add(place), half, full(stage));
                let policy = bulk::CachePolicy::evict_first();
                let rest = input.add(place + 128);
                bulk::copy_global_to_shared_hint(at.at(BULK / 2), rest, half, full(stage), policy);
            }
            if index >= 32 {
                mbarrier::wait_parity(full(stage), parity);
                let mut word = index - 32;
                while word < BULK {
                    at.at(word).store(at.at(word).load() + 1);
                    word += 32;
                }
                bulk::fence_proxy_async_shared();
                warp::sync_warp(FULL_MASK);
                if index == 32 {
                    bulk::copy_shared_to_global(output.add(place), at, Bytes::of::<u32>(BULK));
                    bulk::commit_group();
                    bulk::wait_group_read::<0>();
                    mbarrier::arrive(empty(stage));
                }
            }
        }
    }
}

/// 64 threads. `input: [64][8]`, `output: [64][8]`: copied by `cp.async` in two groups, each thread writing what
/// its neighbour (`t ^ 1`) copied.
///
/// # Safety
/// As the module says.
#[kernel(
    threads = 64,
    shared = super::SHARED_BYTES,
    group = "selftest",
    archs("sm_90a"),
    instances(selftest_async_copies)
)]
#[inline(always)]
pub unsafe fn async_copies(input: *const u32, output: *mut u32) {
    let index = thread::thread_idx_x();
    let own = dynamic_shared_mem::<[u32; 4]>().at(2 * index);
    let neighbour = dynamic_shared_mem::<[u32; 4]>().at(2 * (index ^ 1));
    // SAFETY: the caller's; reads come after the copies' wait and a barrier.
    unsafe {
        let from = input.add(8 * index as usize);
        async_copy::copy_16(own.cast(), from);
        async_copy::commit_group();
        async_copy::copy_16(own.at(1).cast(), from.add(4));
        async_copy::commit_group();
        async_copy::wait_group::<1>();
        thread::sync_threads();
        let [a, b, c, d] = neighbour.load();
        async_copy::wait_group::<0>();
        thread::sync_threads();
        let [e, f, g, h] = neighbour.at(1).load();
        store_own_words(output, [a, b, c, d, e, f, g, h]);
    }
}
