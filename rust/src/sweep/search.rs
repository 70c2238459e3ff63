//! The exact k-th largest key of a tensor in bounded memory, without a sort.
//!
//! Quickselect with pivots from a sample and ranks from sweeps over the whole tensor: every sweep counts the keys above a
//! few pivots and collects those between two of them, which most often hold the answer. Integer keys make it exact; the
//! path taken never changes the answer. Deltas of 16-bit checkpoints lie on a grid: a key that many elements have is
//! isolated between its predecessor and itself, and nothing is collected.

/// Maximum number of keys that one search collects.
pub const COLLECT: usize = 1 << 17;

/// Maximum number of pivots that are counted at once.
pub const PIVOTS: usize = 3;

/// Returns whether the last two pivots have a single key between them: then it need not be collected.
pub fn is_pair(pivots: &[i64]) -> bool {
    matches!(pivots, [.., low, high] if low + 1 == *high)
}

/// Returns two keys between which, above the first and up to the second, the k-th largest of `n` keys most likely is, from
/// a sample of them.
fn around(sample: &mut [i64], n: usize, k: usize) -> [i64; 2] {
    let (len, last) = (sample.len() as f64, sample.len() - 1);
    let rank = len * (k as f64 / n as f64);
    let of_rank =
        |sample: &mut [i64], rank: f64| *sample.select_nth_unstable(last - (rank.max(1.0) as usize - 1).min(last)).1;
    let many = |sample: &[i64], key: i64| {
        let equal = sample.iter().filter(|other| **other == key).count();
        equal as f64 / len * n as f64 > (COLLECT / 4) as f64
    };
    let key = of_rank(sample, rank.ceil());
    if many(sample, key) {
        return [key - 1, key];
    }
    // So narrow that of twelve million keys those in between can be collected.
    let spread = 2.5 * (rank * (1.0 - rank / len)).max(0.0).sqrt() + 1.0;
    let [low, high] = [rank + spread, rank - spread].map(|rank| of_rank(sample, rank));
    [if many(sample, low) { low } else { low - 1 }, if many(sample, high) { high - 1 } else { high }]
}

/// The search for the `k`-th largest of `n` keys.
#[derive(Clone, Debug)]
pub struct Search {
    k: usize,
    /// Keys of the tensor above `low` and up to `high`.
    sample: Vec<i64>,
    /// The answer is above this key, which has `above_low` keys above it.
    low: i64,
    above_low: usize,
    /// The answer is at most this key, which has `above_high` keys above it.
    high: i64,
    above_high: usize,
}

impl Search {
    /// Starts a search with `1 <= k <= n`; `top` is the largest key that there can be; the sample holds keys of the
    /// tensor. It may be empty, and is not used if `n` is at most [`COLLECT`].
    pub fn new(n: usize, k: usize, top: i64, sample: Vec<i64>) -> Self {
        Self { k, sample, low: -1, above_low: n, high: top, above_high: 0 }
    }

    /// Returns the pivots to begin with where the rank depends on the number of keys that are not zero: zero, and two
    /// around the rank.
    pub fn pivots_of_part(sample: &mut [i64], n: usize, top: i64, k: impl Fn(usize) -> usize) -> Vec<i64> {
        if sample.is_empty() {
            return vec![0, top];
        }
        let share = sample.iter().filter(|key| **key > 0).count() as f64 / sample.len() as f64;
        let [low, high] = around(sample, n, k((share * n as f64) as usize).clamp(1, n));
        vec![0, low, high]
    }

    /// Returns the next pivots, of which a sweep returns the number of keys above each and, unless there are more than
    /// [`COLLECT`], the keys above the last but one and up to the last.
    pub fn pivots(&mut self) -> Vec<i64> {
        let (bounds, population) = ([self.low, self.high], self.above_low - self.above_high);
        if population <= COLLECT || is_pair(&bounds) {
            return bounds.to_vec();
        }
        if self.sample.is_empty() {
            // Halve the interval of keys.
            return vec![i64::midpoint(self.low, self.high)];
        }
        let pivots = around(&mut self.sample, population, self.k - self.above_high);
        // A handful of keys that span the interval do not narrow it; one of them does.
        let pivots = if pivots == bounds { [self.sample[0] - 1, self.sample[0]] } else { pivots };
        pivots.to_vec()
    }

    /// Processes what a sweep returns: the number of keys above each pivot and the keys collected, none if there are too
    /// many. Once it is known, returns the k-th largest key and how many of the keys equal to it are among the k largest.
    /// Fails if no set of keys is consistent with all sweeps so far: then the data changed between two of them.
    pub fn learn(
        &mut self,
        pivots: &[i64],
        above: &[usize],
        keys: Option<Vec<i64>>,
    ) -> Result<Option<(i64, usize)>, Inconsistent> {
        let before = (self.low, self.high);
        for (&pivot, &above) in pivots.iter().zip(above) {
            if pivot < self.low || pivot > self.high {
                continue;
            }
            if above > self.above_low || above < self.above_high {
                return Err(Inconsistent);
            }
            if above >= self.k {
                (self.low, self.above_low) = (pivot, above);
            } else {
                (self.high, self.above_high) = (pivot, above);
            }
        }
        let (low, high, rank) = (self.low, self.high, self.k - self.above_high);
        let is_between = |key: &i64| low < *key && *key <= high;
        if is_pair(pivots) && pivots.ends_with(&[low, high]) {
            return Ok(Some((high, rank)));
        }
        if let Some(mut keys) = keys
            && matches!(pivots, [.., from, to] if *from <= low && high <= *to)
        {
            keys.retain(is_between);
            if keys.len() != self.above_low - self.above_high {
                return Err(Inconsistent);
            }
            let at = keys.len() - rank;
            let key = *keys.select_nth_unstable(at).1;
            let larger = keys[at..].iter().filter(|other| **other > key).count();
            return Ok(Some((key, rank - larger)));
        }
        if before == (low, high) {
            // Each sweep narrows the interval, and the answer stays inside, so a search over unchanged data ends.
            return Err(Inconsistent);
        }
        self.sample.retain(is_between);
        Ok(None)
    }
}

/// The data of a search changed while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inconsistent;
