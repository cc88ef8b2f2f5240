//! Where the pages of a saved prefix are read from: files and other inputs, or the host's memory.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use super::header::fill;
use super::{Checked, Header, SavedError, pages};
use crate::attention::HostBytes;

const SUM_BYTES: usize = 4;

/// What [`TreeCache::restore`](crate::TreeCache::restore) reads a file from.
pub trait Input: Read + Seek + Send {}

impl<I: Read + Seek + Send> Input for I {}

/// A page's tokens and rows.
pub(crate) type Page<'s> = (Range<u32>, &'s [u8]);

/// Pages of a saved prefix, by runs.
pub(crate) enum Pages<'a> {
    /// Read into memory that copies to the device can be made from, and checked.
    Input(&'a mut dyn Input, Box<dyn HostBytes>),
    /// Written by this process.
    Host(&'a [u8]),
}

impl Pages<'_> {
    /// The pages of `tokens`, which begin with one, each with its tokens.
    pub(crate) fn run<'s>(
        &'s mut self,
        header: &Header,
        tokens: Range<u32>,
    ) -> Result<Vec<Page<'s>>, SavedError> {
        let at = |token: u32| header.run_bytes(token);
        let (begin, end) = (at(tokens.start), at(tokens.end));
        let (run, checked) = match self {
            Self::Host(bytes) => {
                let first = header.bytes() as usize;
                (&bytes[first + begin..first + end], true)
            }
            Self::Input(input, buffer) => {
                let start = SeekFrom::Start(header.bytes() + begin as u64);
                input.seek(start).map_err(SavedError::io("read"))?;
                let run = &mut buffer.bytes_mut()[..end - begin];
                fill(&mut *input, run, "keys and values")?;
                (&*run, false)
            }
        };
        let mut all = Vec::new();
        for page in pages(tokens) {
            let bytes = &run[at(page.start) - begin..at(page.end) - begin];
            let (rows, mut sum) = bytes.split_at(bytes.len() - SUM_BYTES);
            if !checked {
                Checked::new(&mut sum as &mut dyn Read).compare(rows, "keys and values")?;
            }
            all.push((page, rows));
        }
        Ok(all)
    }
}
