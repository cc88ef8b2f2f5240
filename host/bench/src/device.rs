//! What runs a problem: a GPU or the CPU.

use anyhow::Result;
use deft::plan::{Grouping, Plan, PlanConfig};

use crate::compare::Outputs;
use crate::cpu::CpuSession;
use crate::gpu::{Gpu, Repeats};
use crate::problem::Problem;
use crate::session::{Part, Session};
use crate::stats::Spread;

#[derive(Debug)]
pub(crate) enum Device {
    Gpu(Gpu),
    Cpu,
}

/// A problem on a device.
#[derive(Debug)]
pub(crate) enum Runner<'g> {
    Gpu(Box<Session<'g>>),
    Cpu(CpuSession),
}

impl Device {
    /// The device in one line.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Gpu(gpu) => gpu.device.describe(),
            Self::Cpu => format!("CPU, {} threads", rayon::current_num_threads()),
        }
    }

    /// The same for a [`deft::TreeCache`], kernels included.
    pub(crate) fn of_library(&self) -> deft::Device {
        match self {
            Self::Gpu(gpu) => gpu.device.clone().into(),
            Self::Cpu => deft::Device::cpu(),
        }
    }

    /// Microseconds of doing nothing, measured as everything else is.
    pub(crate) fn time_nothing(&self, repeats: Repeats) -> Result<f64> {
        match self {
            Self::Gpu(gpu) => Ok(gpu.time_empty_graph(repeats)?.median),
            Self::Cpu => Ok(0.0),
        }
    }

    /// Brings a problem to the device.
    pub(crate) fn runner(&self, problem: &Problem) -> Result<Runner<'_>> {
        Ok(match self {
            Self::Gpu(gpu) => {
                let slots = problem.lengths.len() as u32;
                let mut session =
                    Session::new(gpu, &problem.pool, &problem.q, problem.view.queries, slots)?;
                let counters = (&problem.lengths, &problem.tail_pages);
                session
                    .cache
                    .set_counters(counters.0, counters.1, &gpu.stream)?;
                Runner::Gpu(Box::new(session))
            }
            Self::Cpu => Runner::Cpu(CpuSession::new(problem)?),
        })
    }
}

impl Runner<'_> {
    /// How to plan for the device.
    pub(crate) fn plan_config(&self, grouping: Grouping) -> PlanConfig {
        match self {
            Self::Gpu(session) => session.cache.plan_config(grouping, session.heads.group),
            Self::Cpu(session) => session.plan_config(grouping),
        }
    }

    /// The kernels and what they take of a multiprocessor.
    pub(crate) fn kernels(&self) -> Result<Vec<String>> {
        let Self::Gpu(session) = self else {
            return Ok(Vec::new());
        };
        let kernels = session.cache.kernels().into_iter();
        kernels
            .map(|kernel| {
                let taken = kernel.resources()?;
                Ok(format!(
                    "{}: {} registers, {} bytes local, {} bytes shared, {} threads",
                    kernel.name(),
                    taken.registers,
                    taken.local_bytes,
                    taken.dynamic_shared_bytes,
                    taken.threads
                ))
            })
            .collect()
    }

    /// Brings `plan` to the device.
    pub(crate) fn load(&mut self, plan: &Plan) -> Result<()> {
        match self {
            Self::Gpu(session) => session.load(plan),
            Self::Cpu(_) => Ok(()),
        }
    }

    /// Attention over the plan that was loaded, into poisoned outputs.
    pub(crate) fn attend(&mut self, plan: &Plan, what: &str) -> Result<Outputs> {
        match self {
            Self::Gpu(session) => session.attend(plan.queries(), what),
            Self::Cpu(session) => session.attend(plan),
        }
    }

    /// Microseconds of attention over the plan that was loaded.
    pub(crate) fn time(&mut self, plan: &Plan, repeats: Repeats, what: &str) -> Result<Spread> {
        match self {
            Self::Gpu(session) => session.time(Part::Whole, repeats, what),
            Self::Cpu(session) => session.time(plan, repeats),
        }
    }

    /// Median microseconds of attention without its merge; none on the CPU.
    pub(crate) fn time_partial(&self, repeats: Repeats, what: &str) -> Result<Option<f64>> {
        match self {
            Self::Gpu(session) => Ok(Some(session.time(Part::Partial, repeats, what)?.median)),
            Self::Cpu(_) => Ok(None),
        }
    }
}
