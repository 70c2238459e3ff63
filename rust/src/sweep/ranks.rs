//! Which elements of a row survive a draw whose limit depends on the rank of their score in the row.
//!
//! Few ranks are needed. Limits fall with the rank, so a draw above all or below all of them decides; for the others, the
//! elements of a row are counted in buckets of similar scores, and the limits of the first and the last rank of its bucket
//! decide for nearly every element. Only of the rest is the rank found.
use super::count::key_of;
use super::select::Score;
use crate::bits::{Bits, WORD, first_bits};
use crate::draw::{below, draw};
use crate::error::{Error, Result};
use crate::lanes::{Lanes, W};
use crate::real::Real;
use crate::simd::{Simd, Task};
use std::cmp::Reverse;
use std::marker::PhantomData;

/// Elements of a row up to which buckets do not pay.
const FEW: usize = 128;
/// Elements whose ranks are found one by one; if there are more of them, buckets are sorted.
const ALONE: usize = 48;
/// The least and the largest number of buckets.
const BUCKETS: [usize; 2] = [128, 4096];
/// Powers of two of a score that the buckets cover; smaller scores share the last one.
const OCTAVES: usize = 8;
/// Elements of a row among which the largest score is looked for.
const SAMPLE: usize = 32;

/// Refuses rows that are too long.
pub fn rankable(columns: usize) -> Result<()> {
    match u32::try_from(columns) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Merge(format!("a row of {columns} elements is too long to be ranked"))),
    }
}

/// Returns the bytes that [`Ranks`] of rows hold.
pub fn held(columns: usize) -> usize {
    // Keys, buckets and draws; columns in order and what sorting them takes; counts and limits of buckets.
    let of_column = size_of::<i64>() + size_of::<u16>() + 4 * size_of::<u32>();
    columns.saturating_mul(of_column) + BUCKETS[1] * size_of::<[u32; 6]>() + 4 * WORD * size_of::<u32>()
}

/// Computes the keys of a row.
#[inline(always)]
pub(super) fn score<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    score: &S,
    x: [&[u8]; M],
    keys: &mut Vec<<F::Real as Real>::Key>,
) {
    keys.resize(x[0].len() / F::BYTES, Default::default());
    let (whole, rest) = keys.as_chunks_mut::<W>();
    let mut lanes = [[F::Real::default(); W]; M];
    for (i, keys) in whole.iter_mut().enumerate() {
        for k in 0..M {
            lanes[k] = F::in_order(x[k], i * W);
        }
        *keys = score.keys::<W>(lanes);
    }
    let from = whole.len() * W;
    for (i, key) in rest.iter_mut().enumerate() {
        *key = key_of::<F, S, M>(score, x, from + i);
    }
}

/// Returns how many keys come before one in descending order, of equal ones those with a lower index.
#[inline(always)]
pub(super) fn rank<K: Copy + Ord>(keys: &[K], index: usize) -> u32 {
    let key = keys[index];
    let (before, after) = keys.split_at(index);
    before.iter().map(|other| u32::from(*other >= key)).sum::<u32>()
        + after.iter().map(|other| u32::from(*other > key)).sum::<u32>()
}

/// A row of which elements are drawn.
pub struct Row<'a, S, const M: usize> {
    /// Ranks the elements, of equal scores the lowest column first.
    pub score: &'a S,
    /// The elements that the score reads.
    pub x: [&'a [u8]; M],
    /// The element in the first column.
    pub first: usize,
    /// Per rank the limit below which a draw keeps an element, largest score first, none above the one before.
    pub limits: &'a [u32],
    /// The key of the tensor.
    pub key: [u32; 2],
    /// The number of the model.
    pub model: u32,
}

/// Room to rank the elements of a row.
#[derive(Default)]
pub struct Ranks<R: Real> {
    words: Vec<[u32; 4]>,
    keys: Vec<R::Key>,
    buckets: Vec<u16>,
    /// Per bucket: its elements, counted apart for each column modulo four so that neighbours do not wait for each other.
    counts: Vec<[u32; 4]>,
    /// Per bucket: the limit of its last rank, and the distance to that of its first.
    bounds: Vec<[u32; 2]>,
    /// Columns that are not decided.
    open: Vec<u32>,
    order: Vec<u32>,
}

impl<R: Real> Ranks<R> {
    /// Sets the bits of the survivors of a row.
    pub fn mark<F: Lanes<Real = R>, S: Score<R, M>, const M: usize>(
        &mut self,
        simd: Simd,
        row: &Row<S, M>,
        bits: &mut Bits,
    ) {
        simd.run(Mark::<F, S, M> { ranks: self, row, bits, format: PhantomData });
    }

    /// Draws for every column; returns where the words of the first begin.
    #[inline(always)]
    fn draw(&mut self, key: [u32; 2], model: u32, first: usize, columns: usize) -> usize {
        let skip = first % 4;
        self.words.resize((skip + columns.next_multiple_of(WORD)).div_ceil(4), [0; 4]);
        draw(key, model, first - skip, &mut self.words);
        skip
    }

    /// Counts the elements in buckets, and finds the limits of their ranks.
    #[inline(always)]
    fn count(&mut self, limits: &[u32]) {
        let columns = self.keys.len();
        let buckets = (columns / 8).next_power_of_two().clamp(BUCKETS[0], BUCKETS[1]);
        let octave = (1.0 / R::EPSILON) as i64;
        let shift = (octave / (buckets / OCTAVES) as i64).ilog2();
        let sample = (0..SAMPLE).map(|i| self.keys[i * columns / SAMPLE]).max().map_or(0, Into::into);
        let (top, last) = (R::narrow_key((sample + octave).min(R::TOP - 1)), buckets as u16 - 1);
        self.buckets.resize(columns, 0);
        for (bucket, key) in self.buckets.iter_mut().zip(&self.keys) {
            *bucket = R::steps_below(top, *key, shift, last);
        }
        self.counts.clear();
        self.counts.resize(buckets, [0; 4]);
        let (fours, rest) = self.buckets.as_chunks::<4>();
        for four in fours {
            for j in 0..4 {
                self.counts[four[j] as usize][j] += 1;
            }
        }
        for bucket in rest {
            self.counts[*bucket as usize][0] += 1;
        }
        self.bounds.resize(buckets, [0; 2]);
        let (mut from, end) = (0, columns - 1);
        // Not `extend`: its closure would not be compiled for the instruction set.
        for (bounds, [a, b, c, d]) in self.bounds.iter_mut().zip(&self.counts) {
            let first = from.min(end);
            from += (a + b + c + d) as usize;
            let last = limits[from.max(1) - 1];
            *bounds = [last, limits[first].saturating_sub(last)];
        }
    }

    /// Finds the ranks of the columns that are open, and whether they survive.
    #[inline(always)]
    fn settle(&mut self, limits: &[u32], words: &[u32], mut keep: impl FnMut(usize)) {
        if self.keys.len() <= FEW || self.open.len() <= ALONE {
            for column in self.open.iter().map(|column| *column as usize) {
                if words[column] >> 1 < limits[rank(&self.keys, column) as usize] {
                    keep(column);
                }
            }
            return;
        }
        // Columns in the order of their buckets; `counts` are where each bucket ends then.
        let mut end = 0;
        for counts in &mut self.counts {
            let from = end;
            end += counts.iter().sum::<u32>();
            *counts = [from; 4];
        }
        self.order.resize(self.keys.len(), 0);
        for (column, bucket) in self.buckets.iter().enumerate() {
            let place = &mut self.counts[*bucket as usize][0];
            self.order[*place as usize] = column as u32;
            *place += 1;
        }
        for column in &self.open {
            let bucket = self.buckets[*column as usize] as usize;
            let [end, from, ..] = self.counts[bucket].map(|place| place as usize);
            if std::mem::take(&mut self.bounds[bucket][1]) == 0 {
                continue;
            }
            let order = &mut self.order[from..end];
            let key = |column: &u32| self.keys[*column as usize];
            let same = key(column);
            if order.iter().any(|column| key(column) != same) {
                order.sort_by_key(|column| Reverse(key(column)));
            }
            for (column, limit) in order.iter().zip(&limits[from..end]) {
                if words[*column as usize] >> 1 < *limit {
                    keep(*column as usize);
                }
            }
        }
    }
}

/// See [`Ranks::mark`].
struct Mark<'a, F: Lanes, S, const M: usize> {
    ranks: &'a mut Ranks<F::Real>,
    row: &'a Row<'a, S, M>,
    bits: &'a mut Bits,
    format: PhantomData<F>,
}

impl<F: Lanes, S: Score<F::Real, M>, const M: usize> Task for Mark<'_, F, S, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { ranks, row, bits, .. } = self;
        let (Row { limits, .. }, columns) = (row, row.limits.len());
        let (Some(most), Some(least)) = (limits.first().copied(), limits.last().copied()) else { return };
        if most == 0 {
            return;
        }
        let (ranked, few) = (most > least, columns <= FEW);
        if ranked {
            score::<F, S, M>(row.score, row.x, &mut ranks.keys);
            if !few {
                ranks.count(limits);
            }
        }
        let skip = ranks.draw(row.key, row.model, row.first, columns);
        ranks.open.clear();
        let words = &ranks.words.as_flattened()[skip..];
        for (i, word) in words.as_chunks::<WORD>().0.iter().take(columns.div_ceil(WORD)).enumerate() {
            let from = i * WORD;
            let inside = first_bits(columns - from);
            let mut keep = below(word, least) & inside;
            let mut left = if ranked { below(word, most) & inside & !keep } else { 0 };
            while left != 0 {
                let j = left.trailing_zeros() as usize;
                left &= left - 1;
                if few {
                    ranks.open.push((from + j) as u32);
                    continue;
                }
                let [last, width] = ranks.bounds[ranks.buckets[from + j] as usize];
                let drawn = word[j] >> 1;
                keep |= u64::from(drawn < last) << j;
                if drawn.wrapping_sub(last) < width {
                    ranks.open.push((from + j) as u32);
                }
            }
            bits.set(row.first + from, keep);
        }
        let words = std::mem::take(&mut ranks.words);
        ranks.settle(limits, &words.as_flattened()[skip..], |column| bits.set(row.first + column, 1));
        ranks.words = words;
    }
}
