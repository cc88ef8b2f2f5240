//! A plan as a table.

use std::fmt::{self, Display, Formatter};

use kernels_gpu::abi::NONE;

use super::Plan;

/// What the table says of one share, or of all.
#[derive(Default)]
struct Line {
    items: u32,
    direct: u32,
    segments: usize,
    pages: u32,
    rows: u32,
}

impl Plan {
    fn line(&self, share: u32) -> Line {
        let mut line = Line::default();
        for item in self.share(share).items() {
            line.items += 1;
            line.direct += u32::from(item.record.partial_slot == NONE);
            line.segments += item.segments.len();
            line.pages += item.segments.iter().map(|s| s.page_count).sum::<u32>();
            line.rows = line.rows.max(item.record.query_count * self.group_size);
        }
        line
    }
}

impl Line {
    fn write(&self, f: &mut Formatter<'_>, name: &dyn Display, ns: u64) -> fmt::Result {
        writeln!(
            f,
            "{name:>5} {:>6} {:>6} {:>8} {:>6} {:>5} {:>9.2}",
            self.items,
            self.direct,
            self.segments,
            self.pages,
            self.rows,
            ns as f64 * 1e-3,
        )
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let merged = self.merge_rows.iter().filter(|r| r.slot_count > 0).count();
        writeln!(
            f,
            "{:?}: {} queries x {} rows in {} shares; {} partial slots merge into {merged} queries; \
             {} words a share, {} masks; costliest share / mean {:.3}",
            self.grouping,
            self.queries,
            self.group_size,
            self.shares,
            self.partial_slots,
            self.stride,
            self.masks.len(),
            self.imbalance(),
        )?;
        writeln!(f, "share  items direct segments  pages  rows   cost us")?;
        let mut all = Line::default();
        for share in 0..self.shares {
            let line = self.line(share);
            line.write(f, &share, self.share_ns[share as usize])?;
            all.items += line.items;
            all.direct += line.direct;
            all.segments += line.segments;
            all.pages += line.pages;
            all.rows = all.rows.max(line.rows);
        }
        all.write(f, &"all", self.share_ns.iter().sum())
    }
}
