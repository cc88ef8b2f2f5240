//! What runs a problem: a GPU or the CPU.

use anyhow::Result;
use deft::cache::KvElement;
use deft::plan::{Grouping, Plan, PlanConfig};
use deft_tests::inputs::Inputs;
use deft_tests::oracle::Outputs;
use deft_tests::problem::Problem;

use crate::cpu::CpuSession;
use crate::gpu::{Gpu, Repeats};
use crate::session::{Part, Session};
use crate::stats::Spread;

#[derive(Debug)]
pub(crate) enum Device {
    Gpu(Gpu),
    Cpu,
}

/// A problem on a device.
#[derive(Debug)]
pub(crate) enum Runner<'g, T> {
    Gpu(Box<Session<'g, T>>),
    Cpu(CpuSession<T>),
}

impl Device {
    /// The device in one line.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Gpu(gpu) => gpu.device.describe(),
            Self::Cpu => format!("CPU, {} threads", rayon::current_num_threads()),
        }
    }

    /// The driver's version; `none` without a GPU.
    pub(crate) fn driver(&self) -> String {
        match self {
            Self::Gpu(gpu) => format!("CUDA {}", gpu.device.driver_version()),
            Self::Cpu => "none".to_owned(),
        }
    }

    /// Microseconds of an empty graph, measured as everything else is; none on the CPU.
    pub(crate) fn time_nothing(&self, repeats: Repeats) -> Result<Option<f64>> {
        match self {
            Self::Gpu(gpu) => Ok(Some(gpu.time_empty_graph(repeats)?.median)),
            Self::Cpu => Ok(None),
        }
    }

    /// Brings a problem to the device.
    pub(crate) fn runner<T: KvElement>(&self, problem: &Problem<T>) -> Result<Runner<'_, T>> {
        let mut runner = self.runner_of(&problem.inputs)?;
        runner.set_lengths(&problem.lengths)?;
        Ok(runner)
    }

    /// Brings K, V and queries to the device, for all problems on them.
    pub(crate) fn runner_of<T: KvElement>(&self, inputs: &Inputs<T>) -> Result<Runner<'_, T>> {
        Ok(match self {
            Self::Gpu(gpu) => Runner::Gpu(Box::new(Session::new(gpu, inputs)?)),
            Self::Cpu => Runner::Cpu(CpuSession::new(inputs)?),
        })
    }
}

impl<T: KvElement> Runner<'_, T> {
    /// How to plan for the device.
    pub(crate) fn plan_config(&self, grouping: Grouping) -> PlanConfig {
        match self {
            Self::Gpu(session) => session.cache.plan_config(grouping, session.heads.group_size()),
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

    /// Brings a forest's lengths to the device.
    pub(crate) fn set_lengths(&mut self, lengths: &[u32]) -> Result<()> {
        match self {
            Self::Gpu(session) => session.set_lengths(lengths),
            Self::Cpu(session) => {
                session.lengths = lengths.to_vec();
                Ok(())
            }
        }
    }

    /// Brings `plan` to the device.
    pub(crate) fn load(&mut self, plan: &Plan) -> Result<()> {
        match self {
            Self::Gpu(session) => session.load(plan),
            Self::Cpu(_) => Ok(()),
        }
    }

    /// Attention over the plan that was loaded, into poisoned outputs.
    pub(crate) fn attend(&mut self, plan: &Plan, what: &str) -> Result<Outputs<T>> {
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

    /// Median microseconds of attention and of the part before its merge, with the kernels' code in the caches and the
    /// data not; none on the CPU.
    pub(crate) fn time_with_warm_code(
        &self,
        twin: &Self,
        repeats: Repeats,
        what: &str,
    ) -> Result<Option<[f64; 2]>> {
        let (Self::Gpu(session), Self::Gpu(twin)) = (self, twin) else {
            return Ok(None);
        };
        let time = |part| session.time_with_warm_code(twin, part, repeats, what);
        Ok(Some([time(Part::Whole)?.median, time(Part::Partial)?.median]))
    }
}
