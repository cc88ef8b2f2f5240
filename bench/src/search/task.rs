//! Tasks on the command line: `NAME` or `NAME:SIZE`.

use std::fmt;
use std::str::FromStr;

use deft_search::tasks::{Acrostic, DigitSort, DistinctSum, GameOf24, Task};

/// A task and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskArg {
    name: &'static str,
    size: u32,
}

/// Names, what their sizes may be, and what they are if nobody says.
const TASKS: [(&str, std::ops::RangeInclusive<u32>, u32); 4] = [
    ("acrostic", 1..=16, 5),
    ("digit-sort", 1..=16, 5),
    ("distinct-sum", 1..=16, 3),
    ("game-of-24", 6..=99, 13),
];

impl FromStr for TaskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = text.split_once(':').unwrap_or((text, ""));
        let known = TASKS.iter().find(|task| task.0 == name);
        let (name, sizes, usual) = known.ok_or_else(|| {
            let names = TASKS.map(|task| task.0).join(", ");
            format!("there is no task `{name}`; there are {names}")
        })?;
        let size = if text.contains(':') {
            let size = size.parse().ok().filter(|size| sizes.contains(size));
            let (least, most) = (sizes.start(), sizes.end());
            size.ok_or_else(|| format!("the size of {name} is from {least} to {most}"))?
        } else {
            *usual
        };
        Ok(Self { name, size })
    }
}

impl fmt::Display for TaskArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.size)
    }
}

impl TaskArg {
    pub(super) fn task(&self) -> Box<dyn Task> {
        let size = self.size as usize;
        match self.name {
            "acrostic" => Box::new(Acrostic { words: size }),
            "digit-sort" => Box::new(DigitSort { digits: size }),
            "distinct-sum" => Box::new(DistinctSum::new(size).expect("its size was checked")),
            _ => Box::new(GameOf24 { largest: self.size }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_the_one_of_its_name_and_shows_its_size() {
        for (name, _, usual) in TASKS {
            let usual_size: TaskArg = name.parse().unwrap();
            assert_eq!(usual_size.task().name(), name);
            assert_eq!(usual_size.to_string(), format!("{name}:{usual}"));
            let sized: TaskArg = format!("{name}:9").parse().unwrap();
            assert_eq!((sized.size, sized.task().name()), (9, name));
        }
    }

    #[test]
    fn other_names_and_sizes_are_refused_with_those_there_are() {
        let refused = |text: &str| text.parse::<TaskArg>().unwrap_err();
        assert!(refused("chess").contains("`chess`; there are acrostic, digit-sort"));
        assert_eq!(refused("digit-sort:0"), "the size of digit-sort is from 1 to 16");
        assert_eq!(refused("game-of-24:x"), "the size of game-of-24 is from 6 to 99");
    }
}
