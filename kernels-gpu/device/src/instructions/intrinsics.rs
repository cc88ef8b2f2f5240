//! LLVM's intrinsics for what a warp or a block executes together. Calls of them are convergent: LLVM neither moves
//! them into a branch nor duplicates them. A call of `asm!` is not, so an instruction with `.sync` or `.aligned` is
//! bound here wherever Rust can name the types of its intrinsic; the crate's README lists the rest.

/// Which lane was elected, and whether it is this one.
#[repr(C)]
pub(super) struct Elected {
    _lane: u32,
    pub(super) is_this: bool,
}

// Structures and `i1` pass as LLVM has them.
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    pub(super) fn barrier_sync(id: u32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    pub(super) fn barrier_sync_count(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    pub(super) fn barrier_arrive_count(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    pub(super) fn warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    pub(super) fn shuffle_xor(mask: u32, value: u32, lane_mask: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    pub(super) fn shuffle_idx(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    pub(super) fn vote_ballot(mask: u32, predicate: bool) -> u32;
}

/// Intrinsics that LLVM knows for Hopper alone. Elsewhere their place is taken by text that ptxas refuses, should a
/// kernel for another architecture keep it.
macro_rules! hopper {
    ($(#[link_name = $llvm:literal] fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)+) => {
        #[cfg(target_feature = "sm_90a")]
        unsafe extern "unadjusted" {
            $(#[link_name = $llvm] pub(super) fn $name($($argument: $type),*) $(-> $result)?;)+
        }

        $(
            #[cfg(not(target_feature = "sm_90a"))]
            #[inline(always)]
            pub(super) unsafe fn $name($(_: $type),*) $(-> $result)? {
                // SAFETY: never assembled.
                unsafe { core::arch::asm!(concat!($llvm, " needs sm_90a;"), options(noreturn, nostack)) }
            }
        )+
    };
}

hopper! {
    #[link_name = "llvm.nvvm.elect.sync"]
    fn elect(mask: u32) -> Elected;
    #[link_name = "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32"]
    fn set_max_registers_inc(count: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32"]
    fn set_max_registers_dec(count: u32);
    #[link_name = "llvm.nvvm.wgmma.fence.sync.aligned"]
    fn wgmma_fence();
    #[link_name = "llvm.nvvm.wgmma.commit_group.sync.aligned"]
    fn wgmma_commit_group();
    #[link_name = "llvm.nvvm.wgmma.wait_group.sync.aligned"]
    fn wgmma_wait_group(pending: u64);
}
