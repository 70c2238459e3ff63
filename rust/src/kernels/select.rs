//! The exact k-th largest magnitude of a tensor in bounded memory, without a sort.
//!
//! Quickselect whose pivots come from a sample and whose ranks come from counting sweeps over the whole tensor: every
//! sweep narrows an interval of keys that holds the answer, until a pivot is the answer or the interval is small enough
//! to collect. Integer keys make it exact; the path taken never changes the answer. Deltas of 16-bit checkpoints lie on
//! a grid, so the first pivot is often the answer.
use super::Fold;
use crate::dtype::Format;
use crate::real::Real;
use crate::simd::{PIECE, Simd, Task, prefetch};

/// Keys that one search may collect.
pub const COLLECT: usize = 1 << 17;
/// Elements of the sample.
pub const SAMPLE: usize = 1 << 16;
/// Neighbouring elements of the sample: long runs, or a cold file is read page by page.
pub const SAMPLE_RUN: usize = 1024;

/// What the search needs to know next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// How many keys are above, and how many equal to, each pivot.
    Count(Vec<i64>),
    /// Every key strictly between the two.
    Collect(i64, i64),
    /// Survivors are the keys above `key` and the first `equal` of those equal to it.
    Done {
        /// The k-th largest key.
        key: i64,
        /// How many of the keys equal to it survive.
        equal: usize,
    },
}

/// The search for the `k`-th largest of `n` keys.
#[derive(Clone, Debug)]
pub struct Search {
    k: usize,
    /// Ascending.
    sample: Vec<i64>,
    /// The answer is above this key, which has `above_low` keys above it.
    low: i64,
    above_low: usize,
    /// The answer is below this key; `from_high` keys are not.
    high: i64,
    from_high: usize,
    swept: bool,
    done: Option<(i64, usize)>,
}

impl Search {
    /// `1 <= k <= n`; `top` is [`Real::TOP`]; the sample holds keys of the tensor, all of them where it holds `n`.
    pub fn new(n: usize, k: usize, top: i64, mut sample: Vec<i64>) -> Self {
        sample.sort_unstable();
        let mut search = Self { k, sample, low: -1, above_low: n, high: top, from_high: 0, swept: false, done: None };
        if search.sample.len() == n {
            let all = std::mem::take(&mut search.sample);
            // As many as there are, so nothing contradicts.
            let _always = search.collected(all);
        }
        search
    }

    /// The next step.
    pub fn step(&self) -> Step {
        if let Some((key, equal)) = self.done {
            return Step::Done { key, equal };
        }
        let population = self.above_low - self.from_high;
        if population <= COLLECT {
            return Step::Collect(self.low, self.high);
        }
        let from = self.sample.partition_point(|key| *key <= self.low);
        let to = self.sample.partition_point(|key| *key < self.high);
        let inside = &self.sample[from..to];
        let Some(last) = inside.len().checked_sub(1) else {
            // No sample between: halve the interval of keys.
            return Step::Count(vec![i64::midpoint(self.low, self.high)]);
        };
        let fraction = (self.k - self.from_high) as f64 / population as f64;
        let rank = (inside.len() as f64 * fraction).ceil();
        let spread = if self.swept { 3.0 * (rank * (1.0 - fraction)).max(0.0).sqrt() + 1.0 } else { 0.0 };
        let pivot = |rank: f64| inside[last - (rank.max(1.0) as usize - 1).min(last)];
        let mut pivots = vec![pivot(rank - spread), pivot(rank + spread)];
        pivots.dedup();
        Step::Count(pivots)
    }

    /// Takes the answer to `Count`: keys above and equal to each pivot. Returns the pivot that is the answer, if one is.
    /// Fails if no set of keys gives all the answers so far: then the data changed between two sweeps.
    pub fn counted(&mut self, pivots: &[i64], counts: &[[usize; 2]]) -> Result<Option<usize>, Inconsistent> {
        self.swept = true;
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
        // Each sweep narrows the interval, and the answer stays inside: so a search of data that stand still ends.
        let inside = self.from_high < self.k && self.k <= self.above_low && self.high - self.low > 1;
        if inside && before != (self.low, self.high) { Ok(None) } else { Err(Inconsistent) }
    }

    /// Takes the answer to `Collect`; fails as `counted` does.
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

/// The data of a search changed under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inconsistent;

/// Counts of `|x - base|` against up to two pivots.
#[derive(Clone, Copy)]
struct Counts<K> {
    pivots: [K; 2],
    counts: [[u32; 2]; 2],
}

impl<R: Real> Fold<R, 2> for Counts<R::Key> {
    #[inline(always)]
    fn step(mut self, [base, x]: [R; 2]) -> Self {
        let key = (x - base).key();
        for (pivot, [above, equal]) in self.pivots.iter().zip(&mut self.counts) {
            *above += u32::from(key > *pivot);
            *equal += u32::from(key == *pivot);
        }
        self
    }
}

/// The same against one pivot.
#[derive(Clone, Copy)]
struct Count<K> {
    pivot: K,
    above: u32,
    equal: u32,
}

impl<R: Real> Fold<R, 2> for Count<R::Key> {
    #[inline(always)]
    fn step(self, [base, x]: [R; 2]) -> Self {
        let key = (x - base).key();
        Self {
            above: self.above + u32::from(key > self.pivot),
            equal: self.equal + u32::from(key == self.pivot),
            ..self
        }
    }
}

/// One fold over one run.
struct Run<'a, F, T> {
    fold: T,
    base: &'a [u8],
    x: &'a [u8],
    format: std::marker::PhantomData<F>,
}

impl<F: Format, T: Fold<F::Real, 2>> Task for Run<'_, F, T> {
    type Output = T;
    #[inline(always)]
    fn run(self) -> T {
        let mut fold = self.fold;
        for (i, (base, x)) in self.base.chunks(PIECE).zip(self.x.chunks(PIECE)).enumerate() {
            prefetch(self.base, i * PIECE);
            prefetch(self.x, i * PIECE);
            fold = F::fold(fold, [base, x]);
        }
        fold
    }
}

/// Counts keys of `|x - base|` above and equal to each of one or two pivots, over fewer than 2^32 elements.
pub fn count<F: Format>(simd: Simd, base: &[u8], x: &[u8], pivots: &[i64]) -> [[usize; 2]; 2] {
    let format = std::marker::PhantomData::<F>;
    if let [pivot] = *pivots {
        let fold = Count { pivot: F::Real::narrow_key(pivot), above: 0, equal: 0 };
        let done = simd.run(Run { fold, base, x, format });
        return [[done.above as usize, done.equal as usize], [0; 2]];
    }
    let fold = Counts { pivots: [0, 1].map(|i| F::Real::narrow_key(pivots[i])), counts: [[0; 2]; 2] };
    simd.run(Run { fold, base, x, format }).counts.map(|pair| pair.map(|n| n as usize))
}

/// Appends the keys above `low`, up to and with `last`.
struct Gather<'a, F: Format> {
    base: &'a [u8],
    x: &'a [u8],
    low: <F::Real as Real>::Key,
    last: <F::Real as Real>::Key,
    keys: &'a mut Vec<i64>,
}

impl<F: Format> Task for Gather<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let sixteen = 16 * F::BYTES;
        for (base, x) in self.base.chunks_exact(sixteen).zip(self.x.chunks_exact(sixteen)) {
            let (base, x) = (F::get16(base), F::get16(x));
            let keys: [_; 16] = std::array::from_fn(|i| (x[i] - base[i]).key());
            let hits: u32 = keys.iter().map(|key| u32::from(*key > self.low) & u32::from(*key <= self.last)).sum();
            if hits > 0 {
                let inside = keys.iter().filter(|key| **key > self.low && **key <= self.last);
                self.keys.extend(inside.map(|key| (*key).into()));
            }
        }
        for i in self.x.len() / sixteen * 16..self.x.len() / F::BYTES {
            let key = (F::get(self.x, i) - F::get(self.base, i)).key();
            if key > self.low && key <= self.last {
                self.keys.push(key.into());
            }
        }
    }
}

/// Appends the keys of `|x - base|` strictly between `low` and `high`, in order.
pub fn gather<F: Format>(simd: Simd, base: &[u8], x: &[u8], low: i64, high: i64, keys: &mut Vec<i64>) {
    let (low, last) = (F::Real::narrow_key(low), F::Real::narrow_key(high - 1));
    simd.run(Gather::<F> { base, x, low, last, keys });
}

/// The element after the `r`-th (from 1) whose key equals `key`, or `None` when there are fewer.
pub fn nth_equal<F: Format>(base: &[u8], x: &[u8], key: i64, r: usize) -> Option<usize> {
    let mut found = 0;
    for i in 0..x.len() / F::BYTES {
        let this: i64 = (F::get(x, i) - F::get(base, i)).key().into();
        if this == key {
            found += 1;
            if found == r {
                return Some(i + 1);
            }
        }
    }
    None
}
