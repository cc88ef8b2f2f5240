//! Whether a view is what it promises, so that planning it cannot go wrong.

use kernels_gpu::abi::PAGE_TOKENS;

use super::PlanError;
use super::config::MAX_QUERIES;
use crate::tree::{Run, TreeView};

/// Checks that `view` is what [`TreeView`] promises, so that planning it cannot go wrong.
pub(super) fn check(view: &TreeView, ancestors: &mut Vec<(u32, u32)>) -> Result<(), PlanError> {
    if !(1..=MAX_QUERIES).contains(&view.queries) {
        return Err(PlanError::Queries { queries: view.queries, max: MAX_QUERIES });
    }
    check_order(view, ancestors)?;
    if let Some(of) = view.residues.iter().find(|of| of.run as usize >= view.runs.len()) {
        return Err(PlanError::BadRun {
            run: of.run,
            what: "it has a residue, but does not exist",
        });
    }
    for (of, len) in
        [("runs", view.runs.len()), ("pages", view.pages.len()), ("masks", view.masks.len())]
    {
        let max = u64::from(u32::MAX >> 2);
        if len as u64 > max {
            return Err(PlanError::TooLarge { words: len as u64, of, max });
        }
    }
    // Path to the run at hand: (run, first query that its next child may have).
    ancestors.clear();
    let mut next_root = 0;
    for (index, run) in view.runs.iter().enumerate() {
        let index = index as u32;
        let bad = |what| PlanError::BadRun { run: index, what };
        while ancestors.last().is_some_and(|&(top, _)| Some(top) != run.parent) {
            ancestors.pop();
        }
        let (next, end) = match (ancestors.last_mut(), run.parent) {
            (Some((top, next)), _) => (next, view.runs[*top as usize].queries.end),
            (None, None) => (&mut next_root, view.queries),
            (None, Some(_)) => return Err(bad("its parent is not on the path to it")),
        };
        if run.queries.start < *next || run.queries.end < run.queries.start || run.queries.end > end
        {
            return Err(bad("its queries are not within its parent's and after its siblings'"));
        }
        *next = run.queries.end;
        ancestors.push((index, run.queries.start));
        check_arrays(view, run).map_err(bad)?;
    }
    Ok(())
}

/// Whether the order names each row once. `seen` is scratch.
fn check_order(view: &TreeView, seen: &mut Vec<(u32, u32)>) -> Result<(), PlanError> {
    let bad = || PlanError::QueryOrder { queries: view.queries };
    if view.query_order.len() != view.queries as usize {
        return Err(bad());
    }
    if (0..).zip(&view.query_order).all(|(query, &row)| query == row) {
        return Ok(());
    }
    seen.clear();
    seen.resize(view.queries as usize, (0, 0));
    for &row in &view.query_order {
        match seen.get_mut(row as usize) {
            Some(count) if count.0 == 0 => count.0 = 1,
            _ => return Err(bad()),
        }
    }
    Ok(())
}

fn check_arrays(view: &TreeView, run: &Run) -> Result<(), &'static str> {
    if run.pages.end < run.pages.start || run.pages.end as usize > view.pages.len() {
        return Err("its pages are not in the view's pages");
    }
    let pages = run.pages.end - run.pages.start;
    if pages != run.tokens.div_ceil(PAGE_TOKENS) {
        return Err("it has not as many pages as its tokens fill");
    }
    let width = run.queries.end - run.queries.start;
    if run.causal > 0 {
        if run.causal > run.tokens || run.causal > width {
            return Err("more of its tokens have queries than it has tokens, or queries");
        }
        if pages > 1 || run.mask.is_some() || run.length_slot.is_some() {
            return Err(
                "a run whose queries see its tokens one by one is a page, without masks or growth",
            );
        }
    }
    let Some(mask) = run.mask else {
        return Ok(());
    };
    let end = u64::from(mask) + u64::from(pages) * u64::from(width);
    if end > view.masks.len() as u64 {
        return Err("its masks are not in the view's masks");
    }
    let tail = run.tokens % PAGE_TOKENS;
    if tail > 0 {
        let last = &view.masks[end as usize - width as usize..end as usize];
        if last.iter().any(|&bits| bits >> tail != 0) {
            return Err("a mask shows tokens that do not exist");
        }
    }
    Ok(())
}
