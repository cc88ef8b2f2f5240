//! With a driver of known answers: every argument arrives, on the first call and on later ones.

mod fake;

use std::path::Path;

unsafe extern "C" {
    fn cuDriverGetVersion(version: *mut i32) -> i32;
    fn cuArray3DCreate_v2(array: *mut usize, descriptor: usize) -> i32;
    fn cuTexRefSetMipmapLevelClamp(texture: usize, low: f32, high: f32) -> i32;
    fn cuLaunchCooperativeKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        parameters: usize,
    ) -> i32;
}

#[test]
fn arguments_reach_the_driver_unchanged() {
    let _fake = fake::Fake::load(Path::new(env!("CARGO_TARGET_TMPDIR")));
    cuda_loader::ensure_linked();
    assert!(cuda_loader::has_driver());
    let digest = (1..=10).reduce(|digest, argument| digest * 3 + argument).unwrap();
    for _ in 0..2 {
        let mut version = 0;
        // SAFETY: the signatures are the fake driver's, which lacks the last.
        let (answer, clamp, launch, missing) = unsafe {
            (
                cuDriverGetVersion(&mut version),
                cuTexRefSetMipmapLevelClamp(7, 2.0, 3.0),
                cuLaunchCooperativeKernel(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
                cuArray3DCreate_v2(&mut 0, 0),
            )
        };
        assert_eq!((answer, version), (0, 13_000));
        assert_eq!(clamp, 327);
        assert_eq!(launch, digest);
        assert_eq!(missing, cuda_loader::SYMBOL_NOT_FOUND);
    }
}
