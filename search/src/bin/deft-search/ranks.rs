//! A model of one rank or several, as threads or as processes.

use anyhow::Result;
use deft_engine::ranked::{Ranked, follow};
use deft_engine::ranks::{Communicator, Launch, Memory, TIMEOUT, Tcp};

use crate::args::Args;
use crate::measure::Timed;

/// How long processes have to meet: some hosts start later than others.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// The ranks that run a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ranks {
    /// So many threads of this process, or this one alone.
    Threads(u32),
    /// This process, among others.
    Process(Launch),
}

impl Ranks {
    /// As the command line says, or the launcher's environment.
    ///
    /// # Errors
    /// What the environment lacks.
    pub(crate) fn of(args: &Args) -> Result<Self> {
        Ok(match args.launched {
            true => Self::Process(Launch::from_env()?),
            false => Self::Threads(args.gpus),
        })
    }

    pub(crate) fn count(&self) -> u32 {
        match self {
            Self::Threads(ranks) => *ranks,
            Self::Process(launch) => launch.ranks,
        }
    }

    /// The number of the GPU that `rank` takes on its host.
    #[cfg(feature = "cuda")]
    pub(crate) fn gpu(&self, rank: u32) -> u32 {
        match self {
            Self::Threads(_) => rank,
            Self::Process(launch) => launch.local,
        }
    }

    /// The model of all ranks, of which `make` makes each. None where this process is a rank that does what rank 0 says:
    /// it has done so, to the end.
    ///
    /// # Errors
    /// Those of `make`, and of ranks that do not find one another, die or hang.
    pub(crate) fn model<M: Timed + 'static>(
        &self,
        make: impl Fn(Box<dyn Communicator>) -> Result<M> + Send + Sync + 'static,
    ) -> Result<Option<Box<dyn Timed>>> {
        Ok(match self {
            Self::Threads(1) => Some(Box::new(make(Box::new(Memory::alone()))?)),
            Self::Threads(ranks) => Some(Box::new(Ranked::in_threads(*ranks, TIMEOUT, make)?)),
            Self::Process(launch) => {
                let meet = |channel| -> Result<Box<dyn Communicator>> {
                    let address = launch.address_of(channel)?;
                    let at = (launch.rank, launch.ranks);
                    Ok(Box::new(Tcp::meet(at, &address, PATIENCE, TIMEOUT)?))
                };
                let (control, data) = (meet(0)?, meet(1)?);
                let model = make(data)?;
                if launch.rank > 0 {
                    follow(model, control)?;
                    return Ok(None);
                }
                Some(Box::new(Ranked::lead(model, control)?))
            }
        })
    }
}
