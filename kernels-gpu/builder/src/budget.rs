//! What a kernel may cost: its machine code's length and its registers, as they were measured once. A kernel that
//! outgrows that is refused until somebody accepts it.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::ptxas;

/// Growth that passes, in per cent.
const GROWTH: u32 = 3;
/// And at least so much, for short kernels.
const SLACK: Budget = Budget { instructions: 16, registers: 2 };

const ACCEPT: &str = "if that is meant, accept it (`cargo xtask build-kernels --accept`, \
                      `PtxBuilder::accept_growth`)";

/// What ptxas made of a kernel for one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Budget {
    pub(crate) instructions: u32,
    pub(crate) registers: u32,
}

impl Budget {
    /// Whether `measured` has not outgrown this.
    fn admits(self, measured: Self) -> bool {
        let most = |budget: u32, slack: u32| budget + (budget * GROWTH / 100).max(slack);
        measured.instructions <= most(self.instructions, SLACK.instructions)
            && measured.registers <= most(self.registers, SLACK.registers)
    }

    /// The lower of both, so that what passes does not add up.
    fn min(self, other: Self) -> Self {
        Self {
            instructions: self.instructions.min(other.instructions),
            registers: self.registers.min(other.registers),
        }
    }
}

/// What is done with new measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Compare only.
    Compare,
    /// Compare, and lower budgets to what is needed now.
    Lower,
    /// Take them as the budgets.
    Accept,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instructions, registers } = self;
        write!(f, "{instructions} instructions and {registers} registers")
    }
}

/// Refuses kernels of `made` that have another number of instructions that lanes execute together than in `committed`: the
/// source has changed, or a compiler has doubled a barrier or folded two.
pub(crate) fn compare_collective(committed: &Manifest, made: &Manifest) -> Result<()> {
    let kernels = |manifest: &Manifest| -> BTreeMap<(String, String), u32> {
        let images = manifest.images.iter();
        let kernels = images.flat_map(|image| image.kernels.iter().map(|each| (&image.arch, each)));
        kernels
            .map(|(arch, kernel)| ((arch.clone(), kernel.name.clone()), kernel.collective))
            .collect()
    };
    let before = kernels(committed);
    let mut other = Vec::new();
    for ((arch, name), now) in kernels(made) {
        match before.get(&(arch.clone(), name.clone())) {
            Some(&told) if told != now => {
                other.push(format!("{name} for {arch}: {now}, not {told}"))
            }
            _ => {}
        }
    }
    if !other.is_empty() {
        bail!(
            "kernels have another number of instructions that lanes execute together (`.sync`, `.aligned`); {ACCEPT}:\n    {}",
            other.join("\n    ")
        );
    }
    Ok(())
}

/// Measurements by kernel and GPU.
pub(crate) type Measured = BTreeMap<(String, String), Budget>;

/// Holds `measured` against the table's budgets. Budgets of another release of ptxas are not comparable: they stay as
/// they are under [`Policy::Compare`], and those that were measured are replaced otherwise.
pub(crate) fn settle(
    manifest: &mut Manifest,
    release: &str,
    measured: &Measured,
    policy: Policy,
) -> Result<()> {
    let comparable = manifest.ptxas == release;
    if !comparable {
        if policy == Policy::Compare && !manifest.ptxas.is_empty() {
            return Ok(());
        }
        release.clone_into(&mut manifest.ptxas);
    }
    let mut grown = Vec::new();
    for image in &mut manifest.images {
        let gpus = ptxas::gpus(&image.arch);
        for kernel in &mut image.kernels {
            for gpu in gpus {
                let key = (kernel.name.clone(), (*gpu).to_owned());
                let Some(&now) = measured.get(&key) else {
                    continue;
                };
                let budget = kernel.budgets.entry(key.1).or_insert(now);
                if policy == Policy::Accept || !comparable {
                    *budget = now;
                } else if !budget.admits(now) {
                    grown.push(format!("{} on {gpu}: {now}, its budget is {budget}", kernel.name));
                } else if policy == Policy::Lower {
                    *budget = budget.min(now);
                }
            }
        }
    }
    if !grown.is_empty() {
        bail!("kernels outgrew their budgets; {ACCEPT}:\n    {}", grown.join("\n    "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    const SMALL: Budget = Budget { instructions: 1000, registers: 100 };

    fn measured(instructions: u32, registers: u32) -> Measured {
        let key = ("f_d64".to_owned(), "sm_90a".to_owned());
        BTreeMap::from([(key, Budget { instructions, registers })])
    }

    /// The table after a first build with `SMALL`, and what settling once more says of it.
    fn again(now: &Measured, policy: Policy) -> (Budget, Result<()>) {
        let mut manifest = manifest();
        let first = measured(SMALL.instructions, SMALL.registers);
        settle(&mut manifest, "13", &first, Policy::Lower).unwrap();
        let outcome = settle(&mut manifest, "13", now, policy);
        (manifest.images[1].kernels[0].budgets["sm_90a"], outcome)
    }

    #[test]
    fn a_kernel_may_grow_by_three_per_cent_of_its_budget_which_stays() {
        let (budget, outcome) = again(&measured(1030, 103), Policy::Lower);
        assert!(outcome.is_ok() && budget == SMALL);
        for grown in [measured(1031, 100), measured(1000, 104)] {
            let message = again(&grown, Policy::Compare).1.unwrap_err().to_string();
            assert!(
                message.contains("f_d64 on sm_90a") && message.contains("--accept"),
                "{message}"
            );
        }
    }

    #[test]
    fn growth_that_is_accepted_becomes_the_budget_and_so_does_less() {
        let (budget, outcome) = again(&measured(1500, 120), Policy::Accept);
        assert!(outcome.is_ok() && budget.instructions == 1500 && budget.registers == 120);
        let (budget, _) = again(&measured(900, 100), Policy::Lower);
        assert_eq!(budget.instructions, 900);
        let (budget, _) = again(&measured(900, 100), Policy::Compare);
        assert_eq!(budget, SMALL);
    }

    #[test]
    fn a_barrier_that_comes_or_goes_is_refused_by_kernel_and_architecture() {
        let (committed, mut made) = (manifest(), manifest());
        assert!(compare_collective(&committed, &made).is_ok());
        made.images[1].kernels[0].collective += 1;
        let refused = compare_collective(&committed, &made).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("f_d64 for sm_90a: 2, not 1"), "{text}");
        assert!(compare_collective(&Manifest::default(), &made).is_ok(), "a new kernel");
    }

    #[test]
    fn budgets_of_another_ptxas_are_not_compared() {
        let mut manifest = manifest();
        settle(&mut manifest, "13", &measured(1000, 100), Policy::Lower).unwrap();
        settle(&mut manifest, "14", &measured(2000, 100), Policy::Compare).unwrap();
        assert_eq!(manifest.ptxas, "13");
        settle(&mut manifest, "14", &measured(2000, 100), Policy::Lower).unwrap();
        assert_eq!(manifest.ptxas, "14");
        assert_eq!(manifest.images[1].kernels[0].budgets["sm_90a"].instructions, 2000);
    }
}
