//! The exact k-th largest key of a tensor in bounded memory, without a sort.
//!
//! Quickselect with pivots from a sample and ranks from counting sweeps over the whole tensor: every sweep narrows an
//! interval of keys that contains the answer, until a pivot is the answer or the interval is small enough to collect.
//! Integer keys make it exact; the path taken never changes the answer. Deltas of 16-bit checkpoints lie on a grid, so
//! the first pivot is often the answer.

/// Maximum number of keys that one search collects.
pub const COLLECT: usize = 1 << 17;

/// Maximum number of pivots that are counted at once.
pub const PIVOTS: usize = 3;

/// What the search needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The number of keys above, and of keys equal to, each pivot.
    Count(Vec<i64>),
    /// Every key strictly between the two.
    Collect(i64, i64),
    /// Done: survivors are the keys above `key` and the first `equal` of those equal to it.
    Done {
        /// The k-th largest key.
        key: i64,
        /// How many of the keys equal to it survive.
        equal: usize,
    },
}

/// Returns the index of the key of a rank, counted from the largest as 1, among sorted keys whose last index is `last`.
fn index_of(rank: f64, last: usize) -> usize {
    last - (rank.max(1.0) as usize - 1).min(last)
}

/// Returns zero and two keys between which the k-th largest of `n` keys most likely is, from a sample; k is a function of
/// the number of keys that are not zero.
pub fn around(sample: &mut [i64], n: usize, k: impl Fn(usize) -> usize) -> Vec<i64> {
    let mut pivots = vec![0];
    if let Some(last) = sample.len().checked_sub(1) {
        let scale = n as f64 / sample.len() as f64;
        let not_zero = sample.iter().filter(|key| **key > 0).count() as f64 * scale;
        let rank = k(not_zero as usize) as f64 / scale;
        // So narrow that of twelve million keys those in between can be collected.
        let spread = 2.5 * (rank * (1.0 - rank / sample.len() as f64)).max(0.0).sqrt() + 1.0;
        pivots.extend([rank + spread, rank - spread].map(|rank| *sample.select_nth_unstable(index_of(rank, last)).1));
        pivots.dedup();
    }
    pivots
}

/// The search for the `k`-th largest of `n` keys.
#[derive(Clone, Debug)]
pub struct Search {
    k: usize,
    /// Pivots in ascending order, unused while `first` is set.
    sample: Vec<i64>,
    /// The pivot of the first sweep: most often the answer, and found in a tenth of the time of a sort.
    first: Option<i64>,
    /// The answer is above this key, which has `above_low` keys above it.
    low: i64,
    above_low: usize,
    /// The answer is below this key; `from_high` keys are at or above it.
    high: i64,
    from_high: usize,
    done: Option<(i64, usize)>,
}

impl Search {
    /// Starts a search with `1 <= k <= n`; `top` is [`crate::real::Real::TOP`]; the sample holds keys of the tensor. It
    /// may be empty, and is not used if `n` is at most [`COLLECT`].
    pub fn new(n: usize, k: usize, top: i64, mut sample: Vec<i64>) -> Self {
        let first = sample.len().checked_sub(1).map(|last| {
            let rank = (sample.len() as f64 * (k as f64 / n as f64)).ceil();
            let (_, pivot, _) = sample.select_nth_unstable(index_of(rank, last));
            (*pivot).min(top - 1)
        });
        Self { k, sample, first, low: -1, above_low: n, high: top, from_high: 0, done: None }
    }

    /// Returns the next step.
    pub fn step(&self) -> Step {
        if let Some((key, equal)) = self.done {
            return Step::Done { key, equal };
        }
        let population = self.above_low - self.from_high;
        if population <= COLLECT {
            return Step::Collect(self.low, self.high);
        }
        if let Some(pivot) = self.first {
            return Step::Count(vec![pivot]);
        }
        let from = self.sample.partition_point(|key| *key <= self.low);
        let to = self.sample.partition_point(|key| *key < self.high);
        let inside = &self.sample[from..to];
        let Some(last) = inside.len().checked_sub(1) else {
            // No sample in between: halve the interval of keys.
            return Step::Count(vec![i64::midpoint(self.low, self.high)]);
        };
        let fraction = (self.k - self.from_high) as f64 / population as f64;
        let rank = (inside.len() as f64 * fraction).ceil();
        let spread = 3.0 * (rank * (1.0 - fraction)).max(0.0).sqrt() + 1.0;
        let mut pivots = [rank - spread, rank + spread].map(|rank| inside[index_of(rank, last)]).to_vec();
        pivots.dedup();
        Step::Count(pivots)
    }

    /// Processes the answer to `Count`: keys above and equal to each pivot. Returns the pivot that is the answer, if
    /// one is. Fails if no set of keys is consistent with all answers so far: then the data changed between two sweeps.
    pub fn counted(&mut self, pivots: &[i64], counts: &[[usize; 2]]) -> Result<Option<usize>, Inconsistent> {
        let before = (self.low, self.high);
        for (i, (&pivot, &[above, equal])) in pivots.iter().zip(counts).enumerate() {
            if above < self.k && self.k <= above + equal {
                self.done = Some((pivot, self.k - above));
                return Ok(Some(i));
            }
            if above >= self.k && pivot > self.low {
                (self.low, self.above_low) = (pivot, above);
            } else if above < self.k && pivot < self.high {
                (self.high, self.from_high) = (pivot, above + equal);
            }
        }
        if self.first.take().is_some() && self.above_low - self.from_high > COLLECT {
            self.sample.sort_unstable();
        }
        // Each sweep narrows the interval, and the answer stays inside, so a search over unchanged data ends.
        let inside = self.from_high < self.k && self.k <= self.above_low && self.high - self.low > 1;
        if inside && before != (self.low, self.high) { Ok(None) } else { Err(Inconsistent) }
    }

    /// Processes the answer to `Collect`; fails as `counted` does.
    pub fn collected(&mut self, mut keys: Vec<i64>) -> Result<(), Inconsistent> {
        if keys.len() != self.above_low - self.from_high {
            return Err(Inconsistent);
        }
        let rank = self.k - self.from_high;
        let at = keys.len() - rank;
        let key = *keys.select_nth_unstable(at).1;
        let above = keys[at..].iter().filter(|other| **other > key).count();
        self.done = Some((key, rank - above));
        Ok(())
    }
}

/// The data of a search changed while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inconsistent;
