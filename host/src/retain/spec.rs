//! Policies by name.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{
    Corm, H2o, HeadCompaction, HeadView, Less, MergeBias, Merger, Observe, Retention, Sinks, SnapKv,
};

/// One of this library's policies. As text:
///
/// | text | is |
/// |---|---|
/// | `corm:64` or `corm:64,32` | [`Corm`] with a window of 64, and 64 or 32 newest tokens |
/// | `h2o:64` or `h2o:64,256` | [`H2o`] with 64 newest tokens; all queries or the last 256 count |
/// | `snapkv:32` or `snapkv:32,5` | [`SnapKv`] with a window of 32, pooled over 7 or 5 rows |
/// | `sinks:4,1020` | [`Sinks`] |
/// | `merge:0.75`, `merge:0.75,64,0.12` | [`Merger`] with that threshold; newest tokens (64) and the part that stays for its scores (0.12) |
/// | `merge-plain:..`, `merge-scaled:..` | the same with [`MergeBias::Plain`] and [`MergeBias::ScaleValues`] |
/// | `less:FILE,h2o:64` | [`Less`] over the policy that follows the first comma, with weights from a safetensors file |
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// CORM.
    Corm(Corm),
    /// H2O.
    H2o(H2o),
    /// SnapKV.
    SnapKv(SnapKv),
    /// StreamingLLM.
    Sinks(Sinks),
    /// KVMerger.
    Merger(Merger),
    /// LESS. A policy reads no files: the cache has to have the feature map, which `deft_engine`'s models see to.
    Less {
        /// Where the feature map's weights are.
        weights: PathBuf,
        /// The policy, none of LESS's itself.
        policy: Less<Box<Policy>>,
    },
}

/// Why a text names no policy.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// There is no such policy.
    #[error(
        "policy `{name}`: there are corm, h2o, snapkv, sinks, merge, merge-plain, merge-scaled and less"
    )]
    Name {
        /// The name given.
        name: String,
    },
    /// An argument is missing, too many are given, or one is none.
    #[error("policy `{text}`: {argument} must be {expected}")]
    Argument {
        /// The text given.
        text: String,
        /// Which argument.
        argument: &'static str,
        /// What it may be.
        expected: &'static str,
    },
}

impl Retention for Policy {
    fn observe(&self) -> Option<Observe> {
        match self {
            Self::Corm(policy) => policy.observe(),
            Self::H2o(policy) => policy.observe(),
            Self::SnapKv(policy) => policy.observe(),
            Self::Sinks(policy) => policy.observe(),
            Self::Merger(policy) => policy.observe(),
            Self::Less { policy, .. } => policy.observe(),
        }
    }

    fn needs_keys(&self) -> bool {
        match self {
            Self::Merger(policy) => policy.needs_keys(),
            Self::Less { policy, .. } => policy.needs_keys(),
            _ => false,
        }
    }

    fn select(&mut self, head: &HeadView<'_>) -> HeadCompaction {
        match self {
            Self::Corm(policy) => policy.select(head),
            Self::H2o(policy) => policy.select(head),
            Self::SnapKv(policy) => policy.select(head),
            Self::Sinks(policy) => policy.select(head),
            Self::Merger(policy) => policy.select(head),
            Self::Less { policy, .. } => policy.select(head),
        }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, numbers) = text.split_once(':').unwrap_or((text, ""));
        if name == "less" {
            return less(text, numbers);
        }
        let mut numbers = Numbers { text, left: numbers };
        let merge = |bias| (Some(bias), name);
        let (bias, name) = match name {
            "merge" => merge(MergeBias::LogN),
            "merge-plain" => merge(MergeBias::Plain),
            "merge-scaled" => merge(MergeBias::ScaleValues),
            name => (None, name),
        };
        let policy = match (name, bias) {
            (_, Some(bias)) => Self::Merger(Merger {
                threshold: numbers
                    .next("threshold", "a number above 0", None, |&x: &f32| x > 0.0)?,
                recent: numbers.count("recent", Some(64))?,
                top: numbers.next("top", "a number from 0 to 1", Some(0.12), |top| {
                    (0.0..=1.0).contains(top)
                })?,
                sigma: 5.0,
                bias,
                window: u32::MAX,
            }),
            ("corm", _) => {
                let window = numbers.count("window", None)?;
                Self::Corm(Corm { window, recent: numbers.count("recent", Some(window))? })
            }
            ("h2o", _) => Self::H2o(H2o {
                recent: numbers.count("recent", None)?,
                window: numbers.count("window", Some(u32::MAX))?,
            }),
            ("snapkv", _) => Self::SnapKv(SnapKv {
                window: numbers.count("window", None)?,
                pool: numbers.next("pool", "an odd number", Some(7), |pool| pool % 2 == 1)?,
            }),
            ("sinks", _) => Self::Sinks(Sinks {
                sinks: numbers.count("sinks", None)?,
                recent: numbers.count("recent", None)?,
            }),
            (name, _) => return Err(PolicyError::Name { name: name.to_owned() }),
        };
        numbers.end()?;
        Ok(policy)
    }
}

/// LESS with `arguments`: a file, and a policy.
fn less(text: &str, arguments: &str) -> Result<Policy, PolicyError> {
    let error = |argument, expected| {
        Err(PolicyError::Argument { text: text.to_owned(), argument, expected })
    };
    let (weights, kept) = arguments.split_once(',').unwrap_or((arguments, ""));
    if weights.is_empty() {
        return error("the first argument", "a file of weights");
    }
    if kept.is_empty() {
        return error("the second argument", "a policy");
    }
    match kept.parse()? {
        Policy::Less { .. } => error("the second argument", "another policy than less"),
        kept => Ok(Policy::Less { weights: weights.into(), policy: Less { kept: Box::new(kept) } }),
    }
}

/// The numbers of a text, from the first on.
struct Numbers<'a> {
    text: &'a str,
    left: &'a str,
}

impl Numbers<'_> {
    fn count(
        &mut self,
        argument: &'static str,
        otherwise: Option<u32>,
    ) -> Result<u32, PolicyError> {
        self.next(argument, "a whole number from 0 on", otherwise, |_| true)
    }

    fn next<T: FromStr>(
        &mut self,
        argument: &'static str,
        expected: &'static str,
        otherwise: Option<T>,
        allowed: impl Fn(&T) -> bool,
    ) -> Result<T, PolicyError> {
        let error = || PolicyError::Argument { text: self.text.to_owned(), argument, expected };
        if self.left.is_empty() {
            return otherwise.ok_or_else(error);
        }
        let (number, left) = self.left.split_once(',').unwrap_or((self.left, ""));
        let number = number.parse().ok().filter(allowed).ok_or_else(error)?;
        self.left = left;
        Ok(number)
    }

    fn end(&self) -> Result<(), PolicyError> {
        if self.left.is_empty() {
            return Ok(());
        }
        let (argument, expected) = ("one more number", "left out");
        Err(PolicyError::Argument { text: self.text.to_owned(), argument, expected })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corm(Corm { window, recent }) => write!(f, "corm:{window},{recent}"),
            Self::H2o(H2o { recent, window }) => write!(f, "h2o:{recent},{window}"),
            Self::SnapKv(SnapKv { window, pool }) => write!(f, "snapkv:{window},{pool}"),
            Self::Sinks(Sinks { sinks, recent }) => write!(f, "sinks:{sinks},{recent}"),
            Self::Merger(Merger { threshold, recent, top, bias, .. }) => {
                let name = match bias {
                    MergeBias::LogN => "merge",
                    MergeBias::Plain => "merge-plain",
                    MergeBias::ScaleValues => "merge-scaled",
                };
                write!(f, "{name}:{threshold},{recent},{top}")
            }
            Self::Less { weights, policy } => {
                write!(f, "less:{},{}", weights.display(), policy.kept)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_what_its_text_says_and_says_that_text() {
        for (text, whole) in [
            ("corm:64", "corm:64,64"),
            ("corm:256,32", "corm:256,32"),
            ("h2o:64", "h2o:64,4294967295"),
            ("snapkv:32", "snapkv:32,7"),
            ("sinks:4,1020", "sinks:4,1020"),
            ("merge:0.75", "merge:0.75,64,0.12"),
            ("merge-plain:0.9,16", "merge-plain:0.9,16,0.12"),
            ("merge-scaled:0.9,16,0.5", "merge-scaled:0.9,16,0.5"),
            ("less:of/w.safetensors,corm:64", "less:of/w.safetensors,corm:64,64"),
        ] {
            let policy: Policy = text.parse().unwrap();
            assert_eq!(policy.to_string(), whole);
            assert_eq!(whole.parse(), Ok(policy));
        }
    }

    #[test]
    fn what_is_wrong_with_a_text_is_named() {
        for (text, part) in [
            ("corn:64", "there are corm"),
            ("corm", "window must be"),
            ("corm:x", "window must be"),
            ("corm:-1", "window must be"),
            ("corm:1,2,3", "one more number"),
            ("sinks:4", "recent must be"),
            ("snapkv:32,4", "pool must be an odd number"),
            ("merge:0", "threshold must be"),
            ("merge:0.5,1,2", "top must be"),
            ("merge:NaN", "threshold must be"),
            ("less", "the first argument must be a file"),
            ("less:,corm:64", "the first argument must be a file"),
            ("less:w", "the second argument must be a policy"),
            ("less:w,corn:64", "there are corm"),
            ("less:w,corm", "window must be"),
            ("less:w,less:w,corm:64", "another policy than less"),
        ] {
            let error = text.parse::<Policy>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
