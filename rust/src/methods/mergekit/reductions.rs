//! Sums over a tensor in f32 as torch's CPU kernels make them: eight lanes, one thread, vectors of eight f32 or sixteen
//! 16-bit numbers. f32 sums of many numbers are inexact, so that their order shows in results.
use super::rounding::{Round, fused};
use crate::dtype::F32;
use crate::error::Result;
use crate::lanes::Lanes;
use crate::real::Real;
use crate::sweep::{STRIP, Sweep};
use std::ops::Range;

/// Lanes of torch's vectors of f32.
pub const LANES: usize = 8;
/// Vectors that it sums side by side.
pub const SIDE: usize = 4;
/// Levels of its cascade of sums.
const LEVELS: usize = 4;

/// Takes vectors of terms in order, and the terms left over.
pub trait Reduce {
    /// Starts a sum of this many vectors of dtype `D`.
    fn new<D: Round>(vectors: usize) -> Self;
    /// Adds a vector of eight terms.
    fn add(&mut self, terms: [f32; LANES]);
    /// Adds a vector of sixteen 16-bit terms, in two halves.
    fn add_wide(&mut self, low: [f32; LANES], high: [f32; LANES]);
    /// Adds the last terms, fewer than a vector, and returns the total.
    fn total(self, rest: &[f32]) -> f32;
}

/// The square root of the sum of squares, as `torch.linalg.vector_norm`.
pub struct Norm {
    lanes: [f32; LANES],
    vectors: bool,
}

impl Reduce for Norm {
    fn new<D: Round>(_: usize) -> Self {
        Self { lanes: [0.0; LANES], vectors: D::VECTORS }
    }

    #[inline(always)]
    fn add(&mut self, terms: [f32; LANES]) {
        for j in 0..LANES {
            self.lanes[if self.vectors { j } else { 0 }] += terms[j] * terms[j];
        }
    }

    #[inline(always)]
    fn add_wide(&mut self, low: [f32; LANES], high: [f32; LANES]) {
        self.add(low);
        self.add(high);
    }

    fn total(self, rest: &[f32]) -> f32 {
        let lanes = self.lanes[1..].iter().fold(self.lanes[0], |sum, x| sum + x);
        // Four at once, and the last ones, fewer than four, fused.
        let (fours, last) = rest.split_at(rest.len() / 4 * 4);
        let sum = fours.iter().fold(lanes, |sum, x| sum + x * x);
        last.iter().fold(sum, |sum, x| fused(*x, *x, sum)).sqrt()
    }
}

/// Sums of vectors of terms in a cascade: `SIDE` sums side by side, each of sums of as many terms as one level takes.
pub struct Cascade<V, const SIDE: usize> {
    /// Vectors that are summed in the cascade.
    vectors: usize,
    step: usize,
    power: usize,
    taken: usize,
    levels: [[V; SIDE]; LEVELS],
    /// Vectors behind the cascade.
    behind: Vec<V>,
}

#[inline(always)]
fn plus<V: AsRef<[f32]> + AsMut<[f32]>>(sum: &mut V, terms: &V) {
    for (sum, term) in sum.as_mut().iter_mut().zip(terms.as_ref()) {
        *sum += term;
    }
}

impl<V: AsRef<[f32]> + AsMut<[f32]> + Clone, const SIDE: usize> Cascade<V, SIDE> {
    /// Starts a sum of this many vectors, each as long as `zero`.
    pub fn new(zero: &V, vectors: usize) -> Self {
        let rows = vectors / SIDE;
        let power = (rows.next_power_of_two().ilog2() as usize / LEVELS).max(4);
        let levels = std::array::from_fn(|_| std::array::from_fn(|_| zero.clone()));
        Self { vectors: rows * SIDE, step: 1 << power, power, taken: 0, levels, behind: Vec::new() }
    }

    /// Adds a vector.
    #[inline(always)]
    pub fn add(&mut self, terms: &V) {
        if self.taken == self.vectors {
            self.behind.push(terms.clone());
            return;
        }
        plus(&mut self.levels[0][self.taken % SIDE], terms);
        self.taken += 1;
        if self.taken.is_multiple_of(SIDE * self.step) {
            let rows = self.taken / SIDE;
            for level in 1..LEVELS {
                let (below, above) = self.levels.split_at_mut(level);
                for (below, above) in below[level - 1].iter_mut().zip(&mut above[0]) {
                    plus(above, below);
                    below.as_mut().fill(0.0);
                }
                if rows & ((self.step - 1) << (level * self.power)) != 0 {
                    break;
                }
            }
        }
    }

    /// Returns the sum, element by element.
    pub fn total(self) -> V {
        let [mut sides, above @ ..] = self.levels;
        for level in &above {
            sides.iter_mut().zip(level).for_each(|(side, sum)| plus(side, sum));
        }
        let (sum, others) = sides.split_at_mut(1);
        self.behind.iter().for_each(|vector| plus(&mut sum[0], vector));
        for side in others {
            plus(&mut sum[0], side);
        }
        sum[0].clone()
    }
}

/// A sum in a cascade, as `torch.sum`.
pub struct Sum(Cascade<[f32; LANES], SIDE>);

impl Reduce for Sum {
    fn new<D: Round>(vectors: usize) -> Self {
        Self(Cascade::new(&[0.0; LANES], vectors))
    }

    #[inline(always)]
    fn add(&mut self, terms: [f32; LANES]) {
        self.0.add(&terms);
    }

    #[inline(always)]
    fn add_wide(&mut self, mut low: [f32; LANES], high: [f32; LANES]) {
        plus(&mut low, &high);
        self.add(low);
    }

    fn total(self, rest: &[f32]) -> f32 {
        if self.0.taken == 0 && self.0.behind.is_empty() {
            // Too few for a vector: four numbers side by side.
            let mut sides = [0.0; SIDE];
            let whole = rest.len() / SIDE * SIDE;
            rest[..whole].iter().enumerate().for_each(|(i, x)| sides[i % SIDE] += x);
            rest[whole..].iter().for_each(|x| sides[0] += x);
            return sides[1..].iter().fold(sides[0], |sum, x| sum + x);
        }
        let last = rest.iter().fold(0.0, |sum, x| sum + x);
        self.0.total().iter().fold(last, |total, x| total + x)
    }
}

/// Puts terms into vectors, as wide as those of a dtype.
pub struct Terms<R> {
    sum: R,
    wide: bool,
    held: [[f32; LANES]; 2],
    count: usize,
}

impl<R: Reduce> Terms<R> {
    /// Starts with none of this many terms of dtype `D`.
    pub fn new<D: Round>(terms: usize) -> Self {
        let vectors = if D::SINGLE { terms / LANES } else { terms / LANES / 2 };
        Self { sum: R::new::<D>(vectors), wide: !D::SINGLE, held: [[0.0; LANES]; 2], count: 0 }
    }

    /// Adds a term.
    #[inline(always)]
    pub fn push(&mut self, term: f32) {
        self.held[self.count / LANES][self.count % LANES] = term;
        self.count += 1;
        if self.wide {
            if self.count == 2 * LANES {
                self.sum.add_wide(self.held[0], self.held[1]);
                self.count = 0;
            }
        } else if self.count == LANES {
            self.sum.add(self.held[0]);
            self.count = 0;
        }
    }

    /// Returns the total.
    pub fn total(self) -> f32 {
        self.sum.total(&self.held.as_flattened()[..self.count])
    }
}

/// Reduces a term of each element `at` of some sources, in order.
pub fn reduced<R: Reduce, F: Lanes, const M: usize>(
    sweep: &Sweep<F>,
    reads: [usize; M],
    at: Range<usize>,
    term: impl Fn([f32; M]) -> f32,
) -> Result<f32> {
    let of = |_: usize, x: &[f32], found: &mut [f32]| found[0] = term(std::array::from_fn(|k| x[k]));
    Ok(reduced_all::<R, F32, F>(sweep, &reads, at, 1, of)?[0])
}

/// Reduces several terms of dtype `D` of each element `at` of some sources, in order; `term` computes those of an element.
pub fn reduced_all<R: Reduce, D: Round, F: Lanes>(
    sweep: &Sweep<F>,
    reads: &[usize],
    at: Range<usize>,
    sums: usize,
    mut term: impl FnMut(usize, &[f32], &mut [f32]),
) -> Result<Vec<f32>> {
    let mut terms: Vec<_> = (0..sums).map(|_| Terms::<R>::new::<D>(at.len())).collect();
    let (mut x, mut found) = (vec![0.0; reads.len()], vec![0.0; sums]);
    sweep.strips(reads, at, STRIP, |strip, inputs| {
        sweep.settings.watch.check()?;
        for (i, element) in strip.enumerate() {
            x.iter_mut().zip(inputs).for_each(|(x, input)| *x = F::get(input, i).to_f32());
            term(element, &x, &mut found);
            terms.iter_mut().zip(&found).for_each(|(terms, term)| terms.push(*term));
        }
        Ok(())
    })?;
    Ok(terms.into_iter().map(|terms| D::narrow(terms.total())).collect())
}

/// Reduces numbers that are there.
pub fn reduced_numbers<R: Reduce>(numbers: &[f32]) -> f32 {
    let mut terms = Terms::<R>::new::<F32>(numbers.len());
    for x in numbers {
        terms.push(*x);
    }
    terms.total()
}
