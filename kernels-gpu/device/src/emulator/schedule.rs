//! The choices by which a block ran, as text: what a failed run prints, and what runs it again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a block's scheduler did: let a thread run until it waited, or an asynchronous operation take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Run { thread: u32 },
    Land { kind: Kind, index: u32 },
}

/// Kinds of asynchronous operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bulk,
    Copy,
    Wgmma,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Bulk, Self::Copy, Self::Wgmma];

    fn letter(self) -> char {
        match self {
            Self::Bulk => 'b',
            Self::Copy => 'c',
            Self::Wgmma => 'w',
        }
    }
}

/// One run of one block, choice by choice; see [`Launch::replay`](crate::emulator::Launch::replay).
///
/// As text: the launch's seed and the block's number, then the warps in the order in which they ran. After a warp's
/// number and a slash come its lanes as they were chosen, a digit each (`0` to `9`, `a` to `v`). `+b3` is the third
/// but one of the bulk copies under way taking effect (`c`: of the `cp.async` copies, `w`: of the warps' products).
///
/// ```text
/// seed 5 block 0: 1/0vc 0/7 +b0 1/4
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub(crate) seed: u64,
    pub(crate) block: u32,
    pub(crate) steps: Arc<[Step]>,
}

/// A text that is no [`Schedule`]'s.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{part}` in a schedule: `seed N block N:` and then steps such as `0/1f` and `+b0` are expected"
)]
pub struct ParseScheduleError {
    part: String,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} block {}:", self.seed, self.block)?;
        let mut present = None;
        for step in self.steps.iter() {
            match *step {
                Step::Run { thread } => {
                    let (warp, lane) = (thread / 32, thread % 32);
                    if present != Some(warp) {
                        write!(f, " {warp}/")?;
                        present = Some(warp);
                    }
                    let digit = char::from_digit(lane, 32).expect("a lane is below 32");
                    write!(f, "{digit}")?;
                }
                Step::Land { kind, index } => {
                    write!(f, " +{}{index}", kind.letter())?;
                    present = None;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Schedule {
    type Err = ParseScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |part: &str| ParseScheduleError { part: part.chars().take(40).collect() };
        let (head, steps) = text.split_once(':').ok_or_else(|| wrong(text))?;
        let ["seed", seed, "block", block] = *head.split_whitespace().collect::<Vec<_>>() else {
            return Err(wrong(head));
        };
        let mut all = Vec::new();
        for part in steps.split_whitespace() {
            push_steps(part, &mut all).ok_or_else(|| wrong(part))?;
        }
        Ok(Self {
            seed: seed.parse().map_err(|_| wrong(seed))?,
            block: block.parse().map_err(|_| wrong(block))?,
            steps: all.into(),
        })
    }
}

fn push_steps(part: &str, steps: &mut Vec<Step>) -> Option<()> {
    if let Some(landing) = part.strip_prefix('+') {
        let kind = Kind::ALL.into_iter().find(|kind| landing.starts_with(kind.letter()))?;
        let index = landing[1..].parse().ok()?;
        steps.push(Step::Land { kind, index });
        return Some(());
    }
    let (warp, lanes) = part.split_once('/')?;
    let warp: u32 = warp.parse().ok().filter(|warp| *warp < 32)?;
    for lane in lanes.chars() {
        let thread = 32 * warp + lane.to_digit(32)?;
        steps.push(Step::Run { thread });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_read_as_it_is_written() {
        let run = |thread| Step::Run { thread };
        let landed = Step::Land { kind: Kind::Copy, index: 12 };
        let schedule = Schedule {
            seed: 7,
            block: 3,
            steps: [run(0), run(31), run(33), landed, run(34), run(64)].into(),
        };
        let text = schedule.to_string();
        assert_eq!(text, "seed 7 block 3: 0/0v 1/1 +c12 1/2 2/0");
        assert_eq!(text.parse(), Ok(schedule));
    }

    #[test]
    fn a_text_that_is_no_schedule_is_refused_with_the_part_that_is_wrong() {
        for (text, part) in [
            ("0/1", "0/1"),
            ("seed 1: 0/1", "seed 1"),
            ("seed x block 0: 0/1", "x"),
            ("seed 1 block 0: 0/w", "0/w"),
            ("seed 1 block 0: 32/0", "32/0"),
            ("seed 1 block 0: +d1", "+d1"),
        ] {
            assert_eq!(text.parse::<Schedule>().unwrap_err().part, part);
        }
    }
}
