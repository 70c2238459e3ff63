//! The base plus task vectors, summed or averaged after an election of signs.
use super::reductions::{Sum, reduced_all, reduced_numbers};
use super::rounding::{Round, single};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::delta::{Keep, see};
use crate::real::Real;
use crate::sweep::Sweep;
use std::marker::PhantomData;

/// What a method does with the weighted task vectors.
pub struct Numbers<'a> {
    /// One per model.
    pub weights: &'a [f64],
    /// Divide by the sum of the weights, in an election of those that agree.
    pub normalize: bool,
    /// Factor on what is added.
    pub lambda: f64,
    /// Multiply what survives of a task vector so that it keeps its L1 norm.
    pub rescale: bool,
}

struct Added<R, K, D, const ELECT: bool> {
    keep: K,
    /// What survives of each model is multiplied by, with `rescale`.
    ratios: Vec<R>,
    weights: Vec<R>,
    /// What the sum is divided by without an election.
    divisor: R,
    normalize: bool,
    lambda: Option<R>,
    /// The first element of which every fourth model is summed first.
    rest: usize,
    dtype: PhantomData<D>,
}

/// Returns the kernel of task vectors of which some elements survive, with `ELECT` those that have the elected sign.
pub fn added<F: Lanes, K: Keep<F::Real> + 'static, D: Round, const ELECT: bool>(
    keep: K,
    numbers: &Numbers,
    sweep: &Sweep<F>,
) -> Result<Box<dyn Kernel<F>>> {
    let weights: Vec<F::Real> = numbers.weights.iter().map(|w| D::number(*w)).collect();
    let terms: Vec<f32> = weights.iter().map(|w| w.to_f32()).collect();
    let sum = D::narrow(reduced_numbers::<Sum>(&terms));
    let ratios = if numbers.rescale { ratios::<F, K, D>(&keep, sweep)? } else { Vec::new() };
    Ok(Box::new(Each(Added::<_, _, _, ELECT> {
        keep,
        ratios,
        weights,
        divisor: F::Real::from_f64(if sum.abs() < D::narrow(1e-8) { 1.0 } else { sum.into() }),
        normalize: numbers.normalize,
        lambda: (numbers.lambda != 1.0).then(|| single(numbers.lambda)),
        rest: in_order::<D>(sweep.len()),
        dtype: PhantomData::<D>,
    })))
}

/// Returns the L1 norms of task vectors over those of what survives of them; 1 where either is below 1e-7.
fn ratios<F: Lanes, K: Keep<F::Real>, D: Round>(keep: &K, sweep: &Sweep<F>) -> Result<Vec<F::Real>> {
    let models = sweep.sources().len() - 1;
    let (mut stretch, mut end) = keep.stretch(0);
    let sums = reduced_all::<Sum, D, F>(sweep, &sweep.all(), 0..sweep.len(), 2 * models, |first, x, found| {
        if first >= end {
            (stretch, end) = keep.stretch(first);
        }
        for (model, found) in found.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let d = [single(D::narrow(x[model + 1] - x[0]).into())];
            let [kept] = keep.apply(&stretch, At { first, step: 1 }, model, d, d);
            *found = [d[0].magnitude().to_f32(), kept.magnitude().to_f32()];
        }
    })?;
    let ratio = |[all, kept]: &[f32; 2]| if *all < 1e-7 || *kept < 1e-7 { 1.0 } else { D::narrow(all / kept) };
    Ok(sums.as_chunks::<2>().0.iter().map(|sums| single(ratio(sums).into())).collect())
}

/// Returns the first element of which every fourth model is summed first. torch sums columns over the rows of a matrix in
/// vectors of eight, four at a time; sums of 16-bit numbers are exact in f32 but for the rarest.
pub fn in_order<D: Round>(len: usize) -> usize {
    match len {
        _ if !D::SINGLE => usize::MAX,
        0..8 => len / 4 * 4,
        _ => len / 32 * 32,
    }
}

/// Sums a number of each model in f32: in order, or every fourth model first.
#[inline(always)]
pub fn over_models<R: Real, const N: usize>(count: usize, fourth: bool, term: impl Fn(usize) -> [R; N]) -> [R; N] {
    let whole = if fourth { count / 4 * 4 } else { 0 };
    let mut sides = [[R::default(); N]; 4];
    for k in 0..count {
        let (side, term) = (if k < whole { k % 4 } else { 0 }, term(k));
        for j in 0..N {
            sides[side][j] = sides[side][j] + term[j];
        }
    }
    let [mut sum, others @ ..] = sides;
    for side in &others {
        for j in 0..N {
            sum[j] = sum[j] + side[j];
        }
    }
    sum
}

impl<R: Real, K: Keep<R>, D: Round, const ELECT: bool> Combine<R> for Added<R, K, D, ELECT> {
    /// That of the elements that survive, and whether every fourth model is summed first.
    type Stretch = (K::Stretch, bool);

    fn stretch(&self, from: usize) -> (Self::Stretch, usize) {
        let (kept, end) = self.keep.stretch(from);
        let fourth = from >= self.rest;
        ((kept, fourth), if fourth { end } else { end.min(self.rest) })
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, (kept, fourth): &Self::Stretch, at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (weights, zero) = (&self.weights[..x.len() - 1], R::default());
        let (count, mut y, mut witness) = (weights.len(), x[0], [zero; N]);
        for (k, weight) in weights.iter().enumerate() {
            see(&mut witness, &x[k + 1]);
            let (mut d, base) = (x[k + 1], x[0]);
            for j in 0..N {
                d[j] = D::round(d[j] - base[j]);
            }
            let scaled = self.ratios.get(k).map_or(d, |ratio| d.map(|d| D::round(d * *ratio)));
            x[k + 1] = self.keep.apply(kept, at, k, d, scaled.map(|d| D::round(d * *weight)));
        }
        let models = &x[1..];
        let mut mix = over_models(count, *fourth, |k| models[k]).map(D::round);
        let mut divisor = [self.divisor; N];
        if ELECT {
            // Not below zero is plus; zeros agree with neither.
            let votes = mix.map(|sum| if sum >= zero { R::ONE } else { zero - R::ONE });
            let agree = |k: usize, of: [R; N]| -> [R; N] {
                std::array::from_fn(|j| {
                    let model: &[R; N] = &models[k];
                    of[j].keep_if(model[j].flip_by(votes[j]) > zero)
                })
            };
            mix = over_models(count, *fourth, |k| agree(k, models[k])).map(D::round);
            divisor = over_models(count, *fourth, |k| agree(k, [weights[k]; N])).map(D::round);
            divisor = divisor.map(|sum| if sum == zero { R::ONE } else { sum });
        }
        for j in 0..N {
            if self.normalize {
                mix[j] = D::round(mix[j] / divisor[j]);
            }
            if let Some(lambda) = self.lambda {
                mix[j] = D::round(mix[j] * lambda);
            }
            y[j] = D::round(y[j] + mix[j]);
            witness[j] = witness[j] + y[j];
        }
        (y, witness)
    }
}
