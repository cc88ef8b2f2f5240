//! PTX to machine code for every GPU that it is meant for, a group and GPU at a time, as many as there are cores.

use std::fs;

use anyhow::{Context, Result};
use device::Arch;
use rayon::prelude::*;

use crate::budget::{Budget, Measured};
use crate::ptx::Group;
use crate::ptxas::{self, NVDISASM, PTXAS};
use crate::{PtxBuilder, sass};

/// A group to assemble.
pub(crate) struct Job {
    pub(crate) arch: Arch,
    pub(crate) name: String,
    pub(crate) group: Group,
}

/// Assembles `jobs`, checks the machine code and says what each kernel needs. Gives ptxas' release along.
pub(crate) fn all(builder: &PtxBuilder<'_>, jobs: &[Job]) -> Result<(String, Measured)> {
    let ptxas = PTXAS.find_or_fetch(&builder.target, builder.listener)?;
    let nvdisasm = NVDISASM.find_or_fetch(&builder.target, builder.listener)?;
    let scratch = builder.target.join("kernels/assembled");
    fs::create_dir_all(&scratch)?;
    let pairs: Vec<_> = jobs
        .iter()
        .flat_map(|job| ptxas::gpus(job.arch.name()).iter().map(move |gpu| (job, *gpu)))
        .collect();
    let assemble = |(job, gpu): &(&Job, &str)| {
        let file = scratch.join(format!("{gpu}-{}.ptx", job.name));
        let cubin = file.with_extension("cubin");
        fs::write(&file, &job.group.ptx)?;
        let usages = ptxas::assemble(&ptxas, &file, gpu, &cubin, builder.listener)?;
        let text = ptxas::disassemble(&nvdisasm, &cubin, builder.listener)?;
        if let Some(folder) = &builder.sass {
            fs::create_dir_all(folder)?;
            fs::write(folder.join(format!("{gpu}-{}.sass", job.name)), &text)?;
        }
        let asked = sass::waits_asked(&job.group.ptx)?;
        let codes = sass::read(&text);
        let budgets = usages.into_iter().map(|usage| {
            let code = codes.get(&usage.entry);
            let code = code.with_context(|| format!("no machine code of `{}`", usage.entry))?;
            code.check(&usage.entry, gpu, asked[&usage.entry])?;
            let (instructions, registers) = (code.instructions, usage.registers);
            Ok((usage.entry, Budget { instructions, registers }))
        });
        budgets.collect::<Result<Vec<_>>>()
    };
    let assembled: Vec<_> = pairs.par_iter().map(assemble).collect::<Result<_>>()?;
    let mut measured = Measured::new();
    for ((job, gpu), budgets) in pairs.iter().zip(assembled) {
        for (entry, budget) in budgets {
            let records = &job.group.records;
            let record = records.iter().find(|record| record.entry == entry);
            let record = record.context("ptxas invented an entry")?;
            builder.say(format!(
                "{gpu:<7} {entry:<32} {:>5} instructions, {:>3} registers x {:>4} threads, {:>6} bytes of shared memory",
                budget.instructions, budget.registers, record.threads, record.shared_bytes
            ));
            measured.insert((entry, (*gpu).to_owned()), budget);
        }
    }
    Ok((ptxas::release(&ptxas, builder.listener)?, measured))
}
