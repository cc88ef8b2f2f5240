//! Scores of tokens by their definition, in f64.

use deft::attention::Reduce;

/// What all queries that see a token made of it, one KV head's query heads together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenScore {
    /// The sum of its probabilities.
    pub sum: f64,
    /// The largest.
    pub max: f64,
    /// The largest `t` with `p * t >= 1`.
    pub last: u32,
    /// The same with `p * t >= 1.001` and `0.999`: what rounding leaves open.
    pub last_range: [u32; 2],
}

/// How near to 1 `p * t` has to be for rounding to decide.
const MARGIN: f64 = 1e-3;

impl TokenScore {
    /// Takes a query head up that sees the token: its logit, its LSE, and `t`; 0 for a query that is left out.
    pub fn take(&mut self, logit: f64, lse: f64, t: u32) {
        if t == 0 || !lse.is_finite() {
            return;
        }
        let p = (logit - lse).exp();
        let important = p * f64::from(t);
        self.sum += p;
        self.max = self.max.max(p);
        let [surely, perhaps] = &mut self.last_range;
        for (last, least) in
            [(&mut self.last, 1.0), (surely, 1.0 + MARGIN), (perhaps, 1.0 - MARGIN)]
        {
            if important >= least {
                *last = t.max(*last);
            }
        }
    }

    /// Whether the bits of a plane say the same: probabilities to within `relative` of themselves, and what was important
    /// exactly but where `p * t` is within a thousandth of 1.
    pub fn agrees(&self, reduce: Reduce, bits: u32, relative: f64) -> bool {
        let near = |right: f64| {
            let got = f64::from(f32::from_bits(bits));
            (got - right).abs() <= relative * right + 1e-30
        };
        match reduce {
            Reduce::Sum => near(self.sum),
            Reduce::Max => near(self.max),
            Reduce::Last => {
                let [surely, perhaps] = self.last_range;
                (surely..=perhaps).contains(&bits) && (bits == self.last || surely < perhaps)
            }
        }
    }
}
