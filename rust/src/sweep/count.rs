//! Counts and collects the keys of a strip of a tensor.
use super::search::PIVOTS;
use super::select::Score;
use crate::lanes::{Lanes, W};
use crate::real::Real;
use crate::simd::{PREFETCH, Simd, Task, prefetch};
use std::marker::PhantomData;
use std::ops::Range;

/// Returns the key of element `i`.
#[inline(always)]
pub(super) fn key_of<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    score: &S,
    x: [&[u8]; M],
    i: usize,
) -> <F::Real as Real>::Key {
    score.keys::<1>(x.map(|x| [F::get(x, i)]))[0]
}

/// Counts for one score: the keys above and equal to each pivot.
pub(super) struct Counted<'a, S, const M: usize> {
    pub score: &'a S,
    pub x: [&'a [u8]; M],
    /// One to [`PIVOTS`] of them.
    pub pivots: &'a [i64],
    pub counts: &'a mut [[usize; 2]; PIVOTS],
}

/// Counts for several scores in turns, so that memory reads of all of them overlap. Fewer than 2^32 elements.
pub(super) struct Count<'a, 'b, F, S, const M: usize>(pub &'a mut [Counted<'b, S, M>], pub PhantomData<F>);

/// Per lane, the keys above and equal to each pivot.
type Lanewise = [[[u32; W]; 2]; PIVOTS];

impl<F: Lanes, S: Score<F::Real, M>, const M: usize> Task for Count<'_, '_, F, S, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let elements = self.0.first().map_or(0, |one| one.x[0].len() / F::BYTES);
        let whole = elements / (2 * W) * (2 * W);
        let mut counts: Vec<Lanewise> = vec![[[[0; W]; 2]; PIVOTS]; self.0.len()];
        for start in (0..whole).step_by(PREFETCH / F::BYTES) {
            let turn = start..whole.min(start + PREFETCH / F::BYTES);
            for (one, counts) in self.0.iter().zip(&mut counts) {
                match *one.pivots {
                    [a] => one.turn::<F, 1>(turn.clone(), [a], counts),
                    [a, b] => one.turn::<F, 2>(turn.clone(), [a, b], counts),
                    [a, b, c, ..] => one.turn::<F, 3>(turn.clone(), [a, b, c], counts),
                    [] => {}
                }
            }
        }
        for (one, lanes) in self.0.iter_mut().zip(&counts) {
            for (p, pivot) in one.pivots.iter().enumerate() {
                let pivot = F::Real::narrow_key(*pivot);
                let [above, equal] = lanes[p].map(|lanes| lanes.iter().sum::<u32>() as usize);
                one.counts[p][0] += above;
                one.counts[p][1] += equal;
                for i in whole..elements {
                    let key = key_of::<F, S, M>(one.score, one.x, i);
                    one.counts[p][0] += usize::from(key > pivot);
                    one.counts[p][1] += usize::from(key == pivot);
                }
            }
        }
    }
}

impl<S, const M: usize> Counted<'_, S, M> {
    /// Counts elements `turn`, two vectors at a time.
    #[inline(always)]
    fn turn<F: Lanes, const P: usize>(&self, turn: Range<usize>, pivots: [i64; P], counts: &mut Lanewise)
    where
        S: Score<F::Real, M>,
    {
        let pivots = pivots.map(F::Real::narrow_key);
        let x = self.x.map(|x| &x[turn.start * F::BYTES..turn.end * F::BYTES]);
        for k in 0..M {
            prefetch(self.x[k], turn.start * F::BYTES);
        }
        let [mut low, mut high] = [[[F::Real::default(); W]; M]; 2];
        let mut sums: [[[u32; W]; 2]; P] = std::array::from_fn(|p| counts[p]);
        for i in (0..turn.len()).step_by(2 * W) {
            for k in 0..M {
                [low[k], high[k]] = F::load(x[k], i);
            }
            let (low, high) = (self.score.keys::<W>(low), self.score.keys::<W>(high));
            for p in 0..P {
                for j in 0..W {
                    sums[p][0][j] += u32::from(low[j] > pivots[p]) + u32::from(high[j] > pivots[p]);
                    sums[p][1][j] += u32::from(low[j] == pivots[p]) + u32::from(high[j] == pivots[p]);
                }
            }
        }
        counts[..P].copy_from_slice(&sums);
    }
}

/// Counts keys above and equal to each pivot, over fewer than 2^32 elements.
pub(super) fn count<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    simd: Simd,
    score: &S,
    x: [&[u8]; M],
    pivots: &[i64],
) -> [[usize; 2]; PIVOTS] {
    let mut counts = [[0; 2]; PIVOTS];
    simd.run(Count::<F, S, M>(&mut [Counted { score, x, pivots, counts: &mut counts }], PhantomData));
    counts
}

/// Appends the keys above `low` and up to `last` inclusive, in order.
struct Gather<'a, F: Lanes, S, const M: usize> {
    score: &'a S,
    x: [&'a [u8]; M],
    low: <F::Real as Real>::Key,
    last: <F::Real as Real>::Key,
    keys: &'a mut Vec<i64>,
}

impl<F: Lanes, S: Score<F::Real, M>, const M: usize> Task for Gather<'_, F, S, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let mut x = [[F::Real::default(); W]; M];
        let whole = self.x[0].len() / F::BYTES / W * W;
        for i in (0..whole).step_by(W) {
            for k in 0..M {
                x[k] = F::in_order(self.x[k], i);
            }
            let keys = self.score.keys::<W>(x);
            let hits: u32 = keys.iter().map(|key| u32::from(*key > self.low) & u32::from(*key <= self.last)).sum();
            if hits == W as u32 {
                self.keys.extend(keys.map(Into::into));
            } else if hits > 0 {
                let inside = keys.iter().filter(|key| **key > self.low && **key <= self.last);
                self.keys.extend(inside.map(|key| (*key).into()));
            }
        }
        for i in whole..self.x[0].len() / F::BYTES {
            let key = key_of::<F, S, M>(self.score, self.x, i);
            if key > self.low && key <= self.last {
                self.keys.push(key.into());
            }
        }
    }
}

/// Appends the keys strictly between `low` and `high`, in order.
pub(super) fn gather<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    simd: Simd,
    score: &S,
    x: [&[u8]; M],
    low: i64,
    high: i64,
    keys: &mut Vec<i64>,
) {
    let (low, last) = (F::Real::narrow_key(low), F::Real::narrow_key(high - 1));
    simd.run(Gather::<F, S, M> { score, x, low, last, keys });
}
