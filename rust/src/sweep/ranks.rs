//! Which elements of a row survive a draw whose limit depends on the rank of their score in the row.
//!
//! Few ranks are needed. Limits fall with the rank, so a draw above all or below all of them decides; for the others, the
//! elements of a row are counted in buckets of similar scores, and the limits of the first and the last rank of its bucket
//! decide for nearly every element. Only of the rest is the rank found.
use super::count::key_of;
use super::select::Score;
use crate::bits::{Bits, WORD, first_bits, pack};
use crate::draw::{Draws, Upper, halves};
use crate::error::{Error, Result};
use crate::lanes::Lanes;
use crate::real::Real;
use crate::simd::{PREFETCH, Simd, Task, prefetch};
use std::cmp::Reverse;
use std::marker::PhantomData;

/// Elements of a row up to which buckets do not pay.
const FEW: usize = 128;
/// Elements whose ranks are found one by one; if there are more of them, buckets are sorted.
const ALONE: usize = 48;
/// The least number of buckets.
const LEAST: usize = 128;
/// The largest number of buckets, a power of two.
const MOST: usize = 1024;
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
    let of_column = size_of::<i64>() + 2 * size_of::<u16>() + 4 * size_of::<u32>();
    columns.saturating_mul(of_column) + MOST * size_of::<[u32; 5]>() + 4 * WORD * size_of::<u32>()
}

/// Computes the keys of a row.
#[inline(always)]
pub(super) fn score<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    score: &S,
    x: [&[u8]; M],
    keys: &mut Vec<<F::Real as Real>::Key>,
) {
    keys.resize(x[0].len() / F::BYTES, Default::default());
    // Not by lanes: then the compiler makes vectors across them.
    for (i, key) in keys.iter_mut().enumerate() {
        *key = key_of::<F, S, M>(score, x, i);
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
    /// The draws.
    pub draws: Draws,
}

/// Room to rank the elements of a row.
pub struct Ranks<R: Real> {
    draws: Vec<[Upper; WORD]>,
    keys: Vec<R::Key>,
    buckets: Vec<u16>,
    /// Per bucket: its elements, counted apart for each column modulo four so that neighbours do not wait for each other.
    counts: Box<[[u32; 4]; MOST]>,
    /// Per bucket: the upper halves of the limits of its first rank and, in the lower half, of its last.
    bounds: Box<[u32; MOST]>,
    /// Columns that are not decided.
    open: Vec<u32>,
    order: Vec<u32>,
}

impl<R: Real> Default for Ranks<R> {
    fn default() -> Self {
        let (counts, bounds) = (Box::new([[0; 4]; MOST]), Box::new([0; MOST]));
        let (keys, buckets) = (Vec::new(), Vec::new());
        Self { draws: Vec::new(), keys, buckets, counts, bounds, open: Vec::new(), order: Vec::new() }
    }
}

/// Returns the number of buckets of a row.
fn buckets(columns: usize) -> usize {
    (columns / 8).next_power_of_two().clamp(LEAST, MOST)
}

/// Joins the upper halves of the limits of a first and a last rank.
#[inline(always)]
fn bounds(first: u32, last: u32) -> u32 {
    (first & 0xffff_0000) | last >> 16
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

    /// Counts the elements in buckets, and finds the limits of their ranks.
    #[inline(always)]
    fn count(&mut self, limits: &[u32]) {
        let columns = self.keys.len();
        let buckets = buckets(columns);
        let octave = (1.0 / R::EPSILON) as i64;
        let shift = (octave / (buckets / OCTAVES) as i64).ilog2();
        let sample = (0..SAMPLE).map(|i| self.keys[i * columns / SAMPLE]).max().map_or(0, Into::into);
        let (top, last) = (R::narrow_key(sample.saturating_add(octave).min(R::TOP)), buckets as u16 - 1);
        self.buckets.resize(columns.next_multiple_of(WORD), 0);
        for (bucket, key) in self.buckets.iter_mut().zip(&self.keys) {
            *bucket = R::steps_below(top, *key, shift, last);
        }
        let counts = &mut *self.counts;
        counts[..buckets].fill([0; 4]);
        let (fours, rest) = self.buckets[..columns].as_chunks::<4>();
        for four in fours {
            for j in 0..4 {
                counts[four[j] as usize % MOST][j] += 1;
            }
        }
        for bucket in rest {
            counts[*bucket as usize % MOST][0] += 1;
        }
        let (mut from, end) = (0, columns - 1);
        for (bucket, [a, b, c, d]) in self.bounds.iter_mut().zip(&counts[..buckets]) {
            let first = from.min(end);
            from += (a + b + c + d) as usize;
            *bucket = bounds(limits[first], limits[from.max(1) - 1]);
        }
    }

    /// Finds the ranks of the columns that are open, and whether they survive.
    #[inline(always)]
    fn settle(&mut self, survives: impl Fn(Upper, usize, usize) -> bool, skip: usize, mut keep: impl FnMut(usize)) {
        let draws = &self.draws.as_flattened()[skip..];
        if self.keys.len() <= FEW || self.open.len() <= ALONE {
            for column in self.open.iter().map(|column| *column as usize) {
                if survives(draws[column], column, rank(&self.keys, column) as usize) {
                    keep(column);
                }
            }
            return;
        }
        // Columns in the order of their buckets; `counts` are where each bucket ends then.
        let mut end = 0;
        for counts in &mut self.counts[..buckets(self.keys.len())] {
            let from = end;
            end += counts.iter().sum::<u32>();
            *counts = [from; 4];
        }
        self.order.resize(self.keys.len(), 0);
        for (column, bucket) in self.buckets.iter().take(self.keys.len()).enumerate() {
            let place = &mut self.counts[*bucket as usize][0];
            self.order[*place as usize] = column as u32;
            *place += 1;
        }
        for column in &self.open {
            let [end, from, done, _] = &mut self.counts[self.buckets[*column as usize] as usize];
            let (from, end) = (*from as usize, *end as usize);
            if std::mem::replace(done, u32::MAX) == u32::MAX {
                continue;
            }
            let order = &mut self.order[from..end];
            let key = |column: &u32| self.keys[*column as usize];
            let same = key(column);
            if order.iter().any(|column| key(column) != same) {
                order.sort_by_key(|column| Reverse(key(column)));
            }
            for (column, rank) in order.iter().map(|column| *column as usize).zip(from..end) {
                if survives(draws[column], column, rank) {
                    keep(column);
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
        let (Row { limits, first, draws, .. }, columns) = (row, row.limits.len());
        let (Some(most), Some(least)) = (limits.first().copied(), limits.last().copied()) else { return };
        if most == 0 {
            return;
        }
        score::<F, S, M>(row.score, row.x, &mut ranks.keys);
        let few = columns <= FEW;
        if !few {
            ranks.count(limits);
        }
        let skip = first % WORD;
        ranks.draws.resize((skip + columns.next_multiple_of(WORD)).div_ceil(WORD), [[0; 2]; WORD]);
        let ahead = PREFETCH / F::BYTES / WORD;
        // Meanwhile what the next row reads comes from memory: it most likely follows this one.
        for (i, part) in ranks.draws.chunks_mut(ahead).enumerate() {
            let from = i * ahead * WORD;
            row.x.iter().for_each(|x| prefetch(x, (columns + from) * F::BYTES));
            draws.upper(first - skip + from, part);
        }
        ranks.buckets.resize(columns.next_multiple_of(WORD), 0);
        ranks.open.clear();
        let upper = ranks.draws.as_flattened()[skip..].as_chunks::<WORD>().0;
        let mut limits_of = [bounds(most, least); WORD];
        for (i, (upper, buckets)) in upper.iter().zip(ranks.buckets.as_chunks::<WORD>().0).enumerate() {
            let from = i * WORD;
            if !few {
                for j in 0..WORD {
                    limits_of[j] = ranks.bounds[buckets[j] as usize % MOST];
                }
            }
            let (mut keep, mut open) = ([false; WORD], [false; WORD]);
            for j in 0..WORD {
                let (drawn, [last, first]) = (u16::from_le_bytes(upper[j]), halves(limits_of[j]));
                keep[j] = drawn < last;
                open[j] = drawn >= last && drawn <= first;
            }
            let inside = first_bits(columns - from);
            bits.set(first + from, pack(keep) & inside);
            let mut open = pack(open) & inside;
            while open != 0 {
                ranks.open.push((from + open.trailing_zeros() as usize) as u32);
                open &= open - 1;
            }
        }
        let survives = |upper, column, rank: usize| draws.is_below(upper, first + column, limits[rank]);
        ranks.settle(survives, skip, |column| bits.set(first + column, 1));
    }
}
