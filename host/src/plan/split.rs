//! A plan's programs, parted by the format of their items: a GPU has a launch for each.

use kernels_gpu::abi::{NONE, ProgramHeader, Segment, WorkItem, words_of};

use super::{Item, Plan, Share};
use crate::format::KvFormat;

/// What a launch reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchPages {
    /// The format of its pages.
    pub format: KvFormat,
    /// Whether it reads native pages besides, or alone if that is its format.
    pub native: bool,
}

impl LaunchPages {
    pub(super) const NATIVE: Self = Self { format: KvFormat::Native, native: true };

    fn reads(self, code: u32) -> bool {
        code == self.format.code() || self.native && code == KvFormat::Native.code()
    }
}

impl Plan {
    /// The launches that a GPU makes of the plan: one for each format that items have, in the order of their codes. Native
    /// pages go with those of one of the others, since launches would follow one another: with compacted nodes if there
    /// are some. Of a plan for scores no launch reads pages that are decoded.
    pub fn launches(&self) -> &[LaunchPages] {
        &self.launches
    }

    /// Has a launch for each of `formats`, the native one apart, which are in the order of their codes.
    pub(super) fn set_launches(&mut self, formats: &[KvFormat]) {
        let launches = &mut self.launches;
        launches.clear();
        launches.extend(formats.iter().map(|&format| LaunchPages { format, native: false }));
        let compacted = launches.iter().position(|pages| pages.format == KvFormat::Compacted);
        match launches.get_mut(compacted.unwrap_or(0)) {
            Some(carrier) => carrier.native = true,
            None => launches.push(LaunchPages::NATIVE),
        }
    }

    /// Makes no launch for pages that are decoded.
    pub(super) fn leave_out_decoded(&mut self) {
        let has_compacted = self.launches.iter().any(|pages| pages.format == KvFormat::Compacted);
        self.set_launches(if has_compacted { &[KvFormat::Compacted] } else { &[] });
    }
}

impl Share<'_> {
    /// The share's program of those items alone that the launch of `pages` reads, those of native pages first, laid out as
    /// the whole one is: no more words than that has.
    pub fn of_launch(&self, pages: LaunchPages) -> Vec<u32> {
        let read = self.items().filter(|item| pages.reads(item.record.format));
        let (mut items, others): (Vec<_>, Vec<_>) =
            read.partition(|item| item.record.format == KvFormat::Native.code());
        let native = ProgramHeader::pack_native(items.len() as u32, segments(&items));
        items.extend(others);
        let [header, item, segment] =
            [words_of::<ProgramHeader>(), words_of::<WorkItem>(), words_of::<Segment>()];
        let lists = header + items.len() as u32 * item + segments(&items) * segment;
        let (mut records, mut seen) = (Vec::new(), Vec::new());
        let mut rest: Vec<u32> = Vec::new();
        for item in &items {
            let mut record = *item.record;
            record.segment_begin = seen.len() as u32;
            if record.row_word != NONE {
                record.row_word = lists + rest.len() as u32;
                rest.extend(item.rows());
            }
            records.push(record);
            for segment in item.segments {
                let page_word = lists + rest.len() as u32;
                seen.push(Segment { page_word, ..*segment });
                let room = rest.len() + segment.page_capacity as usize;
                rest.extend(item.pages(segment));
                rest.resize(room, 0);
            }
        }
        let header = ProgramHeader {
            items: records.len() as u32,
            segments: seen.len() as u32,
            words: lists + rest.len() as u32,
            native,
        };
        let mut words: Vec<u32> = bytemuck::cast_slice(&[header]).to_vec();
        words.extend_from_slice(bytemuck::cast_slice(&records));
        words.extend_from_slice(bytemuck::cast_slice(&seen));
        words.extend(rest);
        words
    }
}

fn segments(items: &[Item<'_>]) -> u32 {
    items.iter().map(|item| item.segments.len() as u32).sum()
}
