//! Attention by its definition, in f64: slow, and what every backend is compared with.

use deft::cache::PageId;
use deft::tree::TreeView;
use kernels_gpu::abi::PAGE_TOKENS;

/// Numbers of heads and what the model does to logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceParams {
    /// Query heads; query head `h` reads KV head `h / (q_heads / kv_heads)`.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What `q . k` is multiplied by.
    pub scale: f64,
    /// With `Some(cap)` a scaled logit `s` becomes `cap * tanh(s / cap)`.
    pub soft_cap: Option<f64>,
}

/// What attention gives.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceOutput {
    /// `[queries, q_heads, head_dim]`; zero for a query that sees no token.
    pub out: Vec<f64>,
    /// `[queries, q_heads]`: natural logarithm of the sum of `exp(logit)`; -inf for a query that sees no
    /// token.
    pub lse: Vec<f64>,
}

/// K and V of one token and KV head: `[head_dim]` each.
pub type KeyValue<'a> = (&'a [f64], &'a [f64]);

/// Attention of every query of `view` to the tokens that it sees.
///
/// `q` is `[queries, q_heads, head_dim]` in the view's order of queries; `kv` gives K and V of
/// `(page, token of the page, KV head)`.
///
/// # Panics
/// If `q` is not as long as its shape.
pub fn attend<'a>(
    view: &TreeView,
    params: &ReferenceParams,
    q: &[f64],
    kv: impl Fn(PageId, u32, usize) -> KeyValue<'a>,
) -> ReferenceOutput {
    let ReferenceParams { q_heads, head_dim, .. } = *params;
    assert_eq!(q.len(), view.queries as usize * q_heads * head_dim);
    let mut output = ReferenceOutput {
        out: Vec::with_capacity(q.len()),
        lse: Vec::with_capacity(view.queries as usize * q_heads),
    };
    for query in 0..view.queries {
        let tokens = visible_tokens(view, query);
        for head in 0..q_heads {
            let row = (query as usize * q_heads + head) * head_dim;
            let kv_head = head / (q_heads / params.kv_heads);
            let seen = tokens.iter().map(|&(page, token)| kv(page, token, kv_head));
            let seen: Vec<KeyValue<'_>> = seen.collect();
            let (out, lse) = attend_row(params, &q[row..row + head_dim], &seen);
            output.out.extend(out);
            output.lse.push(lse);
        }
    }
    output
}

/// `(page, token of the page)` of every token that `query` sees.
pub fn visible_tokens(view: &TreeView, query: u32) -> Vec<(PageId, u32)> {
    let mut tokens = Vec::new();
    for run in &view.runs {
        if !run.queries.contains(&query) {
            continue;
        }
        for position in 0..run.tokens {
            let (page, token) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
            let width = run.queries.end - run.queries.start;
            let own = run.causal_tokens(&(query..query + 1));
            let visible = own.is_none_or(|tokens| position < tokens)
                && run.mask.is_none_or(|mask| {
                    let word = mask + page * width + (query - run.queries.start);
                    view.masks[word as usize] >> token & 1 == 1
                });
            if visible {
                tokens.push((view.pages[(run.pages.start + page) as usize], token));
            }
        }
    }
    tokens
}

/// The logit of a query and a key, `[head_dim]` each.
pub fn logit(params: &ReferenceParams, q: &[f64], k: &[f64]) -> f64 {
    let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
    let scaled = product * params.scale;
    match params.soft_cap {
        Some(cap) => cap * (scaled / cap).tanh(),
        None => scaled,
    }
}

/// Attention of one query head, `q: [head_dim]`, to the tokens `seen`: `[head_dim]` and the LSE.
pub fn attend_row(params: &ReferenceParams, q: &[f64], seen: &[KeyValue<'_>]) -> (Vec<f64>, f64) {
    let seen: Vec<_> = seen.iter().map(|&row| (row, 0.0)).collect();
    attend_biased_row(params, q, &seen)
}

/// The same to rows each of which has a bias, which is added to the logit once that is scaled and capped.
pub fn attend_biased_row(
    params: &ReferenceParams,
    q: &[f64],
    seen: &[(KeyValue<'_>, f64)],
) -> (Vec<f64>, f64) {
    let logits: Vec<f64> = seen.iter().map(|((k, _), bias)| logit(params, q, k) + bias).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Where all logits are -inf, no token has any weight, as where there is none: -inf - -inf would be NaN.
    let shift = if max == f64::NEG_INFINITY { 0.0 } else { max };
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - shift).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let norm = if sum == 0.0 { 1.0 } else { sum };
    let mut out = vec![0.0; params.head_dim];
    for (weight, ((_, v), _)) in weights.iter().zip(seen) {
        for (out, v) in out.iter_mut().zip(*v) {
            *out += weight / norm * v;
        }
    }
    (out, shift + sum.ln())
}

#[cfg(test)]
mod tests {
    use deft::tree::Run;

    use super::*;

    const PARAMS: ReferenceParams =
        ReferenceParams { q_heads: 2, kv_heads: 1, head_dim: 2, scale: 0.5, soft_cap: None };

    /// A root of one token, below it an empty leaf with a query, and a block of two draft tokens of
    /// which each of two queries sees one.
    fn view() -> TreeView {
        let run = |parent, queries, tokens, pages, mask| Run {
            parent,
            queries,
            tokens,
            format: deft::KvFormat::Native,
            first_token: 0,
            pages,
            length_slot: None,
            mask,
            causal: 0,
        };
        TreeView {
            runs: vec![
                run(None, 0..3, 1, 0..1, None),
                run(Some(0), 0..1, 0, 1..1, None),
                run(Some(0), 1..3, 2, 1..2, Some(0)),
            ],
            pages: vec![9, 4],
            masks: vec![0b01, 0b10],
            queries: 3,
            query_order: vec![0, 1, 2],
            residues: Vec::new(),
        }
    }

    fn kv(page: PageId, token: u32, _: usize) -> KeyValue<'static> {
        match page * 10 + token {
            90 => (&[90.0, 1.0], &[90.0, -90.0]),
            40 => (&[40.0, 1.0], &[40.0, -40.0]),
            41 => (&[41.0, 1.0], &[41.0, -41.0]),
            place => panic!("nobody sees token {place}"),
        }
    }

    #[test]
    fn a_query_sees_its_path_and_its_bits() {
        let view = view();
        assert_eq!(visible_tokens(&view, 0), [(9, 0)]);
        assert_eq!(visible_tokens(&view, 1), [(9, 0), (4, 0)]);
        assert_eq!(visible_tokens(&view, 2), [(9, 0), (4, 1)]);
    }

    #[test]
    fn two_tokens_are_weighed_as_by_hand() {
        let q = [0.0, 0.0, 0.1, 0.0].repeat(3);
        let output = attend(&view(), &PARAMS, &q, kv);
        // One token: its value, and its logit as LSE.
        assert_eq!(output.out[..4], [90.0, -90.0, 90.0, -90.0]);
        assert_eq!(output.lse[..2], [0.0, 4.5]);
        // Equal logits: the mean, and ln 2.
        assert_eq!(output.out[4..6], [65.0, -65.0]);
        assert!((output.lse[2] - std::f64::consts::LN_2).abs() < 1e-15);
        // Logits 4.5 and 2.05.
        let weight = 1.0 / (1.0 + (-2.45f64).exp());
        assert!((output.out[10] - (90.0 * weight + 41.0 * (1.0 - weight))).abs() < 1e-12);
        assert!((output.lse[5] - (4.5f64.exp() + 2.05f64.exp()).ln()).abs() < 1e-12);
    }

    #[test]
    fn soft_cap_bends_logits_before_the_softmax() {
        let params = ReferenceParams { soft_cap: Some(3.0), ..PARAMS };
        let output = attend(&view(), &params, &[0.1, 0.0].repeat(6), kv);
        assert!((output.lse[0] - 3.0 * 1.5f64.tanh()).abs() < 1e-12);
    }

    #[test]
    fn a_row_with_the_bias_ln_3_counts_three_times() {
        let rows: [KeyValue<'_>; 2] = [(&[4.0, 1.0], &[5.0, 0.0]), (&[7.0, 2.0], &[0.0, 9.0])];
        let biased = [(rows[0], 3.0f64.ln()), (rows[1], 0.0)];
        let capped = ReferenceParams { soft_cap: Some(2.0), ..PARAMS };
        for params in [PARAMS, capped] {
            let (out, lse) = attend_biased_row(&params, &[0.3, 0.1], &biased);
            let three = [rows[0], rows[0], rows[0], rows[1]];
            let (right, right_lse) = attend_row(&params, &[0.3, 0.1], &three);
            assert!(out.iter().zip(&right).all(|(a, b)| (a - b).abs() < 1e-12));
            assert!((lse - right_lse).abs() < 1e-12);
        }
    }

    #[test]
    fn a_query_without_tokens_gives_zero_and_minus_infinity() {
        let view = TreeView { queries: 1, query_order: vec![0], ..TreeView::default() };
        let output = attend(&view, &PARAMS, &[1.0; 4], kv);
        assert_eq!(output.out, [0.0; 4]);
        assert_eq!(output.lse, [f64::NEG_INFINITY; 2]);
    }
}
