//! Pages that have changed hands since somebody last asked.

use super::PageId;

/// Pages that were taken, each once.
#[derive(Clone, Debug, Default)]
pub(super) struct Fresh {
    listed: Vec<bool>,
    pages: Vec<PageId>,
}

impl Fresh {
    pub(super) fn add(&mut self, page: PageId) {
        let at = page as usize;
        if self.listed.len() <= at {
            self.listed.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.listed[at], true) {
            self.pages.push(page);
        }
    }

    pub(super) fn take(&mut self) -> Vec<PageId> {
        for &page in &self.pages {
            self.listed[page as usize] = false;
        }
        std::mem::take(&mut self.pages)
    }
}
