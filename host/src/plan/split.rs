//! A plan's programs, parted by the format of their items: a GPU has a launch for each.

use kernels_gpu::abi::{NONE, ProgramHeader, Segment, WorkItem, words_of};

use super::{Plan, Share};
use crate::format::KvFormat;

impl Plan {
    /// The formats other than the native one that items have, in the order of their codes.
    pub fn formats(&self) -> Vec<KvFormat> {
        if !self.has_formats() {
            return Vec::new();
        }
        let shares = (0..self.shares()).map(|share| self.share(share));
        let mut codes: Vec<u32> =
            shares.flat_map(|share| share.items().map(|item| item.record.format)).collect();
        codes.sort_unstable();
        codes.dedup();
        codes.into_iter().filter(|&code| code != 0).filter_map(KvFormat::from_code).collect()
    }
}

impl Share<'_> {
    /// The share's program of those items alone that have pages of `format`, laid out as the whole one is: no more
    /// words than that has.
    pub fn of_format(&self, format: KvFormat) -> Vec<u32> {
        let items = self.items().filter(|item| item.record.format == format.code());
        let items: Vec<_> = items.collect();
        let segments: usize = items.iter().map(|item| item.segments.len()).sum();
        let [header, item, segment] =
            [words_of::<ProgramHeader>(), words_of::<WorkItem>(), words_of::<Segment>()];
        let lists = header + items.len() as u32 * item + segments as u32 * segment;
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
            reserved: 0,
        };
        let mut words: Vec<u32> = bytemuck::cast_slice(&[header]).to_vec();
        words.extend_from_slice(bytemuck::cast_slice(&records));
        words.extend_from_slice(bytemuck::cast_slice(&seen));
        words.extend(rest);
        words
    }
}
