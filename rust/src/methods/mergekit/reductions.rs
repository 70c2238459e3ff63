//! Sums over a tensor in f32 as torch's CPU kernels make them: eight lanes, one thread. f32 sums of many numbers are
//! inexact, so that their order shows in results.
use super::rounding::fused;
use crate::error::Result;
use crate::lanes::Lanes;
use crate::real::Real;
use crate::sweep::{STRIP, Sweep};
use std::ops::Range;

/// Lanes of torch's vectors of f32.
const LANES: usize = 8;
/// Vectors that it sums side by side.
const SIDE: usize = 4;
/// Levels of its cascade of sums.
const LEVELS: usize = 4;

/// Takes terms in order, eight at a time, and those left over.
pub trait Reduce {
    /// Starts a sum of this many terms.
    fn new(terms: usize) -> Self;
    /// Adds eight terms.
    fn add(&mut self, terms: [f32; LANES]);
    /// Adds the last terms, fewer than eight, and returns the total.
    fn total(self, rest: &[f32]) -> f32;
}

/// The square root of the sum of squares, as `torch.linalg.vector_norm`.
pub struct Norm([f32; LANES]);

impl Reduce for Norm {
    fn new(_: usize) -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    fn add(&mut self, terms: [f32; LANES]) {
        for j in 0..LANES {
            self.0[j] += terms[j] * terms[j];
        }
    }

    fn total(self, rest: &[f32]) -> f32 {
        let lanes = self.0[1..].iter().fold(self.0[0], |sum, x| sum + x);
        // Four at once, and the last ones, fewer than four, fused.
        let (fours, last) = rest.split_at(rest.len() / 4 * 4);
        let sum = fours.iter().fold(lanes, |sum, x| sum + x * x);
        last.iter().fold(sum, |sum, x| fused(*x, *x, sum)).sqrt()
    }
}

/// A sum in a cascade, as `torch.sum`.
pub struct Sum {
    /// Vectors that are summed in the cascade, side by side.
    cascade: usize,
    step: usize,
    power: usize,
    taken: usize,
    levels: [[[f32; LANES]; SIDE]; LEVELS],
    /// Vectors behind the cascade.
    behind: Vec<[f32; LANES]>,
}

fn plus(sum: &mut [f32; LANES], terms: &[f32; LANES]) {
    for j in 0..LANES {
        sum[j] += terms[j];
    }
}

impl Reduce for Sum {
    fn new(terms: usize) -> Self {
        let rows = terms / LANES / SIDE;
        let power = (rows.next_power_of_two().ilog2() as usize / LEVELS).max(4);
        let levels = [[[0.0; LANES]; SIDE]; LEVELS];
        Self { cascade: rows * SIDE, step: 1 << power, power, taken: 0, levels, behind: Vec::new() }
    }

    #[inline(always)]
    fn add(&mut self, terms: [f32; LANES]) {
        if self.taken == self.cascade {
            self.behind.push(terms);
            return;
        }
        plus(&mut self.levels[0][self.taken % SIDE], &terms);
        self.taken += 1;
        if self.taken.is_multiple_of(SIDE * self.step) {
            let rows = self.taken / SIDE;
            for level in 1..LEVELS {
                for side in 0..SIDE {
                    let below = std::mem::take(&mut self.levels[level - 1][side]);
                    plus(&mut self.levels[level][side], &below);
                }
                if rows & ((self.step - 1) << (level * self.power)) != 0 {
                    break;
                }
            }
        }
    }

    fn total(mut self, rest: &[f32]) -> f32 {
        if self.taken == 0 && self.behind.is_empty() {
            // Too few for a vector: four numbers side by side.
            let mut sides = [0.0; SIDE];
            let whole = rest.len() / SIDE * SIDE;
            rest[..whole].iter().enumerate().for_each(|(i, x)| sides[i % SIDE] += x);
            rest[whole..].iter().for_each(|x| sides[0] += x);
            return sides[1..].iter().fold(sides[0], |sum, x| sum + x);
        }
        let [mut sides, above @ ..] = self.levels;
        for level in &above {
            sides.iter_mut().zip(level).for_each(|(side, sum)| plus(side, sum));
        }
        let [mut sum, others @ ..] = sides;
        self.behind.iter().for_each(|vector| plus(&mut sum, vector));
        for side in others {
            plus(&mut sum, &side);
        }
        let last = rest.iter().fold(0.0, |sum, x| sum + x);
        self.levels = [[[0.0; LANES]; SIDE]; LEVELS];
        sum.iter().fold(last, |total, x| total + x)
    }
}

/// Reduces a term of each element `at` of some sources, in order.
pub fn reduced<R: Reduce, F: Lanes, const M: usize>(
    sweep: &Sweep<F>,
    reads: [usize; M],
    at: Range<usize>,
    term: impl Fn([f32; M]) -> f32,
) -> Result<f32> {
    let mut sum = R::new(at.len());
    let (mut terms, mut held) = ([0.0; LANES], 0);
    sweep.strips(&reads, at, STRIP, |strip, inputs| {
        sweep.settings.watch.check()?;
        for i in 0..strip.len() {
            terms[held] = term(std::array::from_fn(|k| F::get(inputs[k], i).to_f32()));
            held += 1;
            if held == LANES {
                sum.add(terms);
                held = 0;
            }
        }
        Ok(())
    })?;
    Ok(sum.total(&terms[..held]))
}

/// Reduces numbers that are there.
pub fn reduced_numbers<R: Reduce>(numbers: &[f32]) -> f32 {
    let mut sum = R::new(numbers.len());
    let (vectors, rest) = numbers.as_chunks::<LANES>();
    for terms in vectors {
        sum.add(*terms);
    }
    sum.total(rest)
}
