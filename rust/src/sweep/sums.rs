//! Sums over a tensor in f64, identical on every instruction set, tile size and number of threads.
use super::{BLOCK, Sweep, TURN};
use crate::error::Result;
use crate::lanes::{At, Lanes, W, one_stretch};
use crate::real::Real;
use crate::simd::{PREFETCH, Simd, Task, prefetch};
use std::marker::PhantomData;
use std::ops::Range;

/// Sixteen f64 accumulators: element `i` of a block is added to accumulator `i % 16` on every instruction set, so a sum
/// does not depend on the vector width.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum([f64; W]);

impl Sum {
    /// Adds sixteen terms.
    #[inline(always)]
    pub fn add16(&mut self, x: [f64; W]) {
        for (sum, x) in self.0.iter_mut().zip(x) {
            *sum += x;
        }
    }

    /// Adds the term of element `i` of a block.
    #[inline(always)]
    pub fn add_one(&mut self, i: usize, x: f64) {
        self.0[i % W] += x;
    }

    /// Returns the total, in one fixed order.
    pub fn total(&self) -> f64 {
        let mut sums = self.0;
        let mut width = W / 2;
        while width > 0 {
            for i in 0..width {
                sums[i] += sums[i + width];
            }
            width /= 2;
        }
        sums[0]
    }
}

/// `K` terms to sum for each element of `M` sources.
pub trait Terms<R: Real, const M: usize, const K: usize>: Sync {
    /// See [`crate::lanes::Combine::Stretch`].
    type Stretch: Default;
    /// Indices of the sources it reads.
    fn reads(&self) -> [usize; M];
    /// See [`crate::lanes::Combine::stretch`].
    fn stretch(&self, _from: usize) -> (Self::Stretch, usize) {
        one_stretch()
    }
    /// Computes the terms. `#[inline(always)]`, without branches on an element.
    fn terms<const N: usize>(&self, stretch: &Self::Stretch, at: At, x: [[R; N]; M]) -> [[f64; N]; K];
}

/// The sums of several terms for each block of a tile, in order.
pub type Blocks<const K: usize> = Vec<Vec<[f64; K]>>;

/// Adds the terms of a stretch of one block, which starts with element `block`.
struct Add<'a, F, T, S, const M: usize, const K: usize> {
    terms: &'a T,
    stretch: &'a S,
    block: usize,
    first: usize,
    x: [&'a [u8]; M],
    sums: &'a mut [Sum; K],
    format: PhantomData<F>,
}

impl<F: Lanes, T: Terms<F::Real, M, K, Stretch = S>, S, const M: usize, const K: usize> Add<'_, F, T, S, M, K> {
    /// Sixteen at a time from an element whose accumulator is 0; the elements before and after one by one.
    fn all(&mut self, simd: Simd) {
        let elements = self.x[0].len() / F::BYTES;
        let offset = self.first - self.block;
        let head = (offset.next_multiple_of(W) - offset).min(elements);
        let tail = head + (elements - head) / W * W;
        self.one_by_one(0..head);
        simd.run(Sixteens(self, head..tail));
        self.one_by_one(tail..elements);
    }

    fn one_by_one(&mut self, range: Range<usize>) {
        for i in range {
            let at = At { first: self.first + i, step: 1 };
            let terms = self.terms.terms::<1>(self.stretch, at, self.x.map(|x| [F::get(x, i)]));
            for (sum, [term]) in self.sums.iter_mut().zip(terms) {
                sum.add_one(self.first + i - self.block, term);
            }
        }
    }
}

struct Sixteens<'a, 'b, F, T, S, const M: usize, const K: usize>(&'b mut Add<'a, F, T, S, M, K>, Range<usize>);

impl<F: Lanes, T: Terms<F::Real, M, K, Stretch = S>, S, const M: usize, const K: usize> Task
    for Sixteens<'_, '_, F, T, S, M, K>
{
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self(add, range) = self;
        let Add { terms, stretch, first, x: inputs, .. } = *add;
        let mut sums = *add.sums;
        // A loop that has no prefetch in it: else everything that it reads would be loaded again for each vector.
        for start in range.clone().step_by(PREFETCH / F::BYTES) {
            let span = start..range.end.min(start + PREFETCH / F::BYTES);
            let mut part = inputs;
            for k in 0..M {
                prefetch(inputs[k], start * F::BYTES);
                part[k] = &inputs[k][start * F::BYTES..span.end * F::BYTES];
            }
            let mut x = [[F::Real::default(); W]; M];
            for i in (0..span.len()).step_by(W) {
                for k in 0..M {
                    x[k] = F::in_order(part[k], i);
                }
                let terms = terms.terms::<W>(stretch, At { first: first + start + i, step: 1 }, x);
                for k in 0..K {
                    sums[k].add16(terms[k]);
                }
            }
        }
        *add.sums = sums;
    }
}

impl<F: Lanes> Sweep<'_, F> {
    /// Computes the sums of each of `terms`; all of them share one sweep.
    pub fn sums<T: Terms<F::Real, M, K>, const M: usize, const K: usize>(&self, terms: &[T]) -> Result<Vec<[f64; K]>> {
        Ok(total(terms.len(), &self.tiles(|tile| self.sums_of_tile(terms, tile))?))
    }

    /// Computes the sums of each of `terms` over a tile, for [`total`].
    pub fn sums_of_tile<T: Terms<F::Real, M, K>, const M: usize, const K: usize>(
        &self,
        terms: &[T],
        tile: Range<usize>,
    ) -> Result<Blocks<K>> {
        tile.clone().step_by(BLOCK).map(|start| self.sums_of(terms, start..tile.end.min(start + BLOCK))).collect()
    }

    /// Computes the sums of each of `terms` over a row.
    pub fn sums_of_row<T: Terms<F::Real, M, K>, const M: usize, const K: usize>(
        &self,
        terms: &[T],
        row: Range<usize>,
    ) -> Result<Vec<[f64; K]>> {
        let mut totals = vec![[0.0; K]; terms.len()];
        for start in row.clone().step_by(BLOCK) {
            add(&mut totals, &self.sums_of(terms, start..row.end.min(start + BLOCK))?);
        }
        Ok(totals)
    }

    /// Computes the sums of one block.
    pub(crate) fn sums_of<T: Terms<F::Real, M, K>, const M: usize, const K: usize>(
        &self,
        terms: &[T],
        block: Range<usize>,
    ) -> Result<Vec<[f64; K]>> {
        let reads: Vec<[usize; M]> = terms.iter().map(Terms::reads).collect();
        let chosen = union(reads.as_flattened());
        let mut sums = vec![[Sum::default(); K]; terms.len()];
        let start = block.start;
        self.strips(&chosen, block, TURN, |strip, inputs| {
            for ((terms, reads), sums) in terms.iter().zip(&reads).zip(&mut sums) {
                let x = reads.map(|read| inputs[chosen.partition_point(|k| *k < read)]);
                let mut first = strip.start;
                while first < strip.end {
                    let (stretch, end) = terms.stretch(first);
                    let end = end.min(strip.end);
                    let x = x.map(|x| &x[(first - strip.start) * F::BYTES..(end - strip.start) * F::BYTES]);
                    let stretch = &stretch;
                    Add { terms, stretch, block: start, first, x, sums, format: PhantomData::<F> }
                        .all(self.settings.simd);
                    first = end;
                }
            }
            Ok(())
        })?;
        // Not `into_iter`, which would keep the room of the accumulators.
        Ok(sums.iter().map(|sums| sums.each_ref().map(Sum::total)).collect())
    }
}

/// Adds the sums of all tiles, which are in order.
pub fn total<const K: usize>(terms: usize, tiles: &[Blocks<K>]) -> Vec<[f64; K]> {
    let mut totals = vec![[0.0; K]; terms];
    tiles.iter().flatten().for_each(|block| add(&mut totals, block));
    totals
}

/// Adds sums to totals.
fn add<const K: usize>(totals: &mut [[f64; K]], sums: &[[f64; K]]) {
    for (total, sum) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *total += sum;
    }
}

/// Returns the sources that several terms read, in ascending order.
pub(super) fn union(reads: &[usize]) -> Vec<usize> {
    let mut chosen = reads.to_vec();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}
