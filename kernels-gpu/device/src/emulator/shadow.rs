//! Who last wrote and read each granule of a block's shared memory.

use crate::emulator::clock::{Agent, Agents, View};
use crate::emulator::report::{Cause, Checked, Fault, Site};

/// Bytes that share a record: the smallest access.
pub(crate) const GRANULE: u32 = 2;

/// Index of "no readers".
const NOBODY: u32 = 0;

/// Fewest nodes of readers at which unreachable ones are dropped.
const COLLECT_AT: usize = 1 << 18;

/// An access: by whom, on whose view of the past, and through which proxy.
#[derive(Clone, Copy)]
pub(crate) struct Access<'v> {
    pub(crate) agent: Agent,
    pub(crate) epoch: u32,
    pub(crate) view: &'v View,
    pub(crate) asynchronous: bool,
    /// What nothing has written may be read: it is poison.
    pub(crate) poison: bool,
    pub(crate) site: Site,
}

impl<'v> Access<'v> {
    /// An ordinary access of the view's thread.
    pub(crate) fn generic(view: &'v View, site: Site) -> Self {
        let (agent, epoch) = view.now();
        Self { agent, epoch, view, asynchronous: false, poison: false, site }
    }

    fn sees(&self, agent: Agent, epoch: u32) -> bool {
        (agent == self.agent && epoch <= self.epoch) || self.view.sees(agent, epoch)
    }
}

#[derive(Clone, Copy, Default)]
struct Granule {
    site: Option<Site>,
    epoch: u32,
    /// First of the readers since the write.
    readers: u32,
    agent: Agent,
    asynchronous: bool,
}

/// A reader, and those before it. Granules read alike share nodes.
#[derive(Clone, Copy)]
struct Reader {
    site: Site,
    epoch: u32,
    next: u32,
    agent: Agent,
}

/// Records of all granules.
pub(crate) struct Shadow {
    granules: Vec<Granule>,
    readers: Vec<Reader>,
    /// The latest change of a readers' list: from, to.
    memo: (u32, u32, Agent, u32),
    collect_at: usize,
}

impl Shadow {
    pub(crate) fn new(bytes: u32) -> Self {
        let nobody =
            Reader { site: std::panic::Location::caller(), epoch: 0, next: NOBODY, agent: 0 };
        Self {
            granules: vec![Granule::default(); bytes.div_ceil(GRANULE) as usize],
            readers: vec![nobody],
            memo: (NOBODY, NOBODY, 0, 0),
            collect_at: COLLECT_AT,
        }
    }

    /// Records a write of `bytes` at `offset`.
    #[inline]
    pub(crate) fn write(
        &mut self,
        offset: u32,
        bytes: u32,
        access: &Access<'_>,
        agents: &Agents,
    ) -> Checked {
        for index in offset / GRANULE..(offset + bytes) / GRANULE {
            let granule = self.granules[index as usize];
            if granule.epoch != 0 {
                self.check_write(index, &granule, access, "writes", agents)?;
            }
            let mut next = granule.readers;
            while next != NOBODY {
                let reader = self.readers[next as usize];
                if !access.sees(reader.agent, reader.epoch) {
                    return Err(race(
                        index,
                        access,
                        "writes",
                        "read",
                        reader.agent,
                        reader.site,
                        agents,
                    ));
                }
                next = reader.next;
            }
            self.granules[index as usize] = Granule {
                site: Some(access.site),
                epoch: access.epoch,
                readers: NOBODY,
                agent: access.agent,
                asynchronous: access.asynchronous,
            };
        }
        Ok(())
    }

    /// Records a read of `bytes` at `offset`.
    #[inline]
    pub(crate) fn read(
        &mut self,
        offset: u32,
        bytes: u32,
        access: &Access<'_>,
        agents: &Agents,
    ) -> Checked {
        for index in offset / GRANULE..(offset + bytes) / GRANULE {
            let granule = self.granules[index as usize];
            if granule.epoch == 0 && !access.poison {
                return Err(Fault::new(
                    Cause::Unwritten,
                    format!(
                        "reads shared memory at +{:#x}, which nothing has written",
                        index * GRANULE
                    ),
                ));
            }
            if granule.agent != access.agent || granule.epoch > access.epoch {
                self.check_write(index, &granule, access, "reads", agents)?;
            }
            let readers = self.with_reader(granule.readers, access);
            self.granules[index as usize].readers = readers;
        }
        if self.readers.len() > self.collect_at {
            self.collect();
        }
        Ok(())
    }

    /// Forgets that `bytes` at `offset` were ever written.
    pub(crate) fn forget(&mut self, offset: u32, bytes: u32) {
        let range = (offset / GRANULE) as usize..((offset + bytes) / GRANULE) as usize;
        self.granules[range].fill(Granule::default());
    }

    fn check_write(
        &self,
        index: u32,
        granule: &Granule,
        access: &Access<'_>,
        verb: &str,
        agents: &Agents,
    ) -> Checked {
        let Some(site) = granule.site else {
            return Ok(());
        };
        if !access.sees(granule.agent, granule.epoch) {
            return Err(race(index, access, verb, "wrote", granule.agent, site, agents));
        }
        let fenced = || access.view.fences(granule.agent, granule.epoch);
        if access.asynchronous && !granule.asynchronous && !fenced() {
            return Err(Fault::new(
                Cause::ProxyFence,
                format!(
                    "{} {verb} shared memory at +{:#x}, which {} wrote at {site}, through the async \
                     proxy without a fence.proxy.async between",
                    agents.describe(access.agent),
                    index * GRANULE,
                    agents.describe(granule.agent)
                ),
            ));
        }
        Ok(())
    }

    /// The list `readers` and this access, less what the access makes superfluous.
    fn with_reader(&mut self, readers: u32, access: &Access<'_>) -> u32 {
        let head = self.readers[readers as usize];
        if readers != NOBODY && head.agent == access.agent && head.epoch == access.epoch {
            return readers;
        }
        let (from, to, agent, epoch) = self.memo;
        if to != NOBODY && from == readers && agent == access.agent && epoch == access.epoch {
            return to;
        }
        let mut kept = NOBODY;
        let mut next = readers;
        while next != NOBODY {
            let reader = self.readers[next as usize];
            // Whoever is ordered after this access is ordered after what it sees.
            if !access.sees(reader.agent, reader.epoch) {
                kept = self.push(Reader { next: kept, ..reader });
            }
            next = reader.next;
        }
        let list = self.push(Reader {
            site: access.site,
            epoch: access.epoch,
            next: kept,
            agent: access.agent,
        });
        self.memo = (readers, list, access.agent, access.epoch);
        list
    }

    fn push(&mut self, reader: Reader) -> u32 {
        self.readers.push(reader);
        (self.readers.len() - 1) as u32
    }

    /// Drops nodes that no granule reaches.
    fn collect(&mut self) {
        let old = std::mem::take(&mut self.readers);
        self.readers.push(old[0]);
        self.memo = (NOBODY, NOBODY, 0, 0);
        let mut moved = vec![NOBODY; old.len()];
        let mut path = Vec::new();
        for index in 0..self.granules.len() {
            let mut next = self.granules[index].readers;
            while next != NOBODY && moved[next as usize] == NOBODY {
                path.push(next);
                next = old[next as usize].next;
            }
            for node in path.drain(..).rev() {
                let reader = old[node as usize];
                moved[node as usize] =
                    self.push(Reader { next: moved[reader.next as usize], ..reader });
            }
            let readers = self.granules[index].readers;
            self.granules[index].readers = moved[readers as usize];
        }
        self.collect_at = COLLECT_AT.max(2 * self.readers.len());
    }
}

fn race(
    index: u32,
    access: &Access<'_>,
    verb: &str,
    other_verb: &str,
    other: Agent,
    other_site: Site,
    agents: &Agents,
) -> Box<Fault> {
    Fault::new(
        Cause::Race,
        format!(
            "{} {verb} shared memory at +{:#x}, which {} {other_verb} at {other_site}, and nothing \
             orders the two",
            agents.describe(access.agent),
            index * GRANULE,
            agents.describe(other)
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::emulator::clock::Clock;

    fn views(count: u16) -> (Agents, Vec<View>) {
        let agents = Agents::new(32);
        let start: Clock = vec![0; agents.count()].into();
        let views = (0..count).map(|agent| View::new(agent, &start)).collect();
        (agents, views)
    }

    fn generic(view: &View) -> Access<'_> {
        Access::generic(view, Location::caller())
    }

    /// Memory that thread 0 wrote and released to `readers` others, who each read all of it.
    fn read_by_many(readers: u16) -> (Shadow, Agents, Vec<View>) {
        let (agents, mut views) = views(readers + 1);
        let mut shadow = Shadow::new(64);
        shadow.write(0, 64, &generic(&views[0]), &agents).unwrap();
        let released = views[0].release();
        for view in &mut views[1..] {
            view.acquire(&released, &mut crate::emulator::clock::Joins::default());
            shadow.read(0, 64, &generic(view), &agents).unwrap();
        }
        (shadow, agents, views)
    }

    #[test]
    fn a_write_races_with_every_reader_it_has_not_seen_even_after_a_collection() {
        for collect in [false, true] {
            for unseen in 1..6 {
                let (mut shadow, agents, mut views) = read_by_many(5);
                if collect {
                    shadow.collect();
                }
                for reader in (1..6).filter(|reader| *reader != unseen) {
                    let released = views[reader].release();
                    views[0].acquire(&released, &mut crate::emulator::clock::Joins::default());
                }
                let fault = shadow.write(8, 4, &generic(&views[0]), &agents).unwrap_err();
                assert_eq!(fault.cause, Cause::Race);
                assert!(
                    fault.message.contains(&format!("thread {unseen} read")),
                    "{}",
                    fault.message
                );
                let released = views[unseen].release();
                views[0].acquire(&released, &mut crate::emulator::clock::Joins::default());
                shadow.write(8, 4, &generic(&views[0]), &agents).unwrap();
            }
        }
    }

    #[test]
    fn a_collection_drops_readers_that_a_write_has_made_superfluous() {
        let (mut shadow, agents, mut views) = read_by_many(5);
        for reader in 1..6 {
            let released = views[reader].release();
            views[0].acquire(&released, &mut crate::emulator::clock::Joins::default());
        }
        shadow.write(0, 64, &generic(&views[0]), &agents).unwrap();
        shadow.collect();
        assert_eq!(shadow.readers.len(), 1);
    }

    #[test]
    fn reading_again_and_again_keeps_one_reader() {
        let (agents, mut views) = views(1);
        let mut shadow = Shadow::new(2);
        shadow.write(0, 2, &generic(&views[0]), &agents).unwrap();
        for _ in 0..100 {
            views[0].release();
            shadow.read(0, 2, &generic(&views[0]), &agents).unwrap();
        }
        shadow.collect();
        assert_eq!(shadow.readers.len(), 2);
    }
}
