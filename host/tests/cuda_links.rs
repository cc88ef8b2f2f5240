//! `cust` links without `libcuda`, and says so where there is no driver.
#![cfg(feature = "cust")]

#[test]
fn cust_starts_with_or_without_a_driver() {
    cuda_loader::ensure_linked();
    match cust::quick_init() {
        Ok(_context) => assert!(cuda_loader::has_driver()),
        Err(error) => {
            assert_eq!(error, cust::error::CudaError::NoDevice);
            assert!(!error.to_string().is_empty());
        }
    }
}
