//! Every instruction of the device module on the emulator, against its plain definition.

use deft_tests::instructions::{Case, cases};

fn check(filter: impl Fn(&Case) -> bool, seeds: u64) {
    let cases: Vec<Case> = cases().into_iter().filter(filter).collect();
    assert!(!cases.is_empty());
    for case in cases {
        for seed in 0..seeds {
            match case.emulate(seed) {
                Ok(output) => case.check(&output),
                Err(report) => panic!("{} {}: {report}", case.entry, case.what),
            }
        }
    }
}

#[test]
fn warpgroup_products_follow_their_descriptors_and_fragments() {
    check(|case| case.entry.contains("wgmma"), 2);
}

#[test]
fn all_other_instructions_do_what_they_are_defined_to_under_any_schedule() {
    check(|case| !case.entry.contains("wgmma"), 20);
}

#[test]
fn a_seed_repeats_its_schedule() {
    let cases = cases();
    let case = cases.iter().find(|case| case.entry == "selftest_mma_bf16").unwrap();
    assert_eq!(case.emulate(3).unwrap(), case.emulate(3).unwrap());
}
