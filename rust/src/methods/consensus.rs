//! Consensus merging (Wang et al., 2024): task arithmetic (`consensus_ta`) or TIES (`consensus_ties`) without the elements
//! that fewer than `k` models need. A model needs an element, which is its TALL mask, where
//! `|d| >= lambda * |merged - d|`, for its task vector `d` and the merged one. Where mol, like mergekitty, differs from the
//! paper: the task vectors are weighted, and those of TIES trimmed, before they are merged; the masks compare whole ones.
use super::delta::{All, Keep, cancelled, factors, see, settled};
use super::ranked::{Largest, held};
use super::{Checked, Merge, not_negative, shares, weighs};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;

/// Base (the first source) plus those elements of the sum of weighted task vectors that enough models need.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsensusTa {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Thresholds of the masks, one per model: the larger, the fewer elements a model needs.
    pub lambdas: Vec<f64>,
    /// How many models must need an element.
    pub k: u32,
    /// Divide by the sum of the weights.
    pub normalize: bool,
}

/// Base (the first source) plus those elements of the merged task vector of TIES that enough models need.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsensusTies {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Fraction of elements kept before the merge, one per model.
    pub densities: Vec<f64>,
    /// Thresholds of the masks, one per model: the larger, the fewer elements a model needs.
    pub lambdas: Vec<f64>,
    /// How many models must need an element.
    pub k: u32,
    /// Divide by the sum of the weights that agree.
    pub normalize: bool,
    /// Rescale survivors so that each task vector keeps its L1 norm.
    pub rescale: bool,
}

/// `base + merged` where the masks of at least `k` models are set.
struct Needed<R: Real, K, const ELECT: bool> {
    keep: K,
    weights: Vec<R>,
    factors: Vec<R>,
    lambdas: Vec<R>,
    k: R,
    normalize: bool,
    /// What the sum is multiplied by without `ELECT`.
    scale: R,
    /// See [`cancelled`].
    cancelled: R::Key,
}

impl<R: Real, K: Keep<R>, const ELECT: bool> Needed<R, K, ELECT> {
    /// Builds the formula; `factors` are the weights, possibly rescaled.
    fn new(keep: K, weights: &[f64], factors: &[f64], lambdas: &[f64], k: u32, normalize: bool) -> Self {
        let real = |numbers: &[f64]| numbers.iter().map(|x| R::from_f64(*x)).collect();
        let sum: f64 = weights.iter().sum();
        let divisor = if normalize && sum.abs() >= 1e-8 { sum } else { 1.0 };
        Self {
            keep,
            weights: real(weights),
            factors: real(factors),
            lambdas: real(lambdas),
            k: R::from_f64(k.into()),
            normalize,
            scale: R::from_f64(1.0 / divisor),
            cancelled: R::from_f64(cancelled(weights)).key(),
        }
    }

    /// Merges the task vectors, which `x` holds after the base.
    #[inline(always)]
    fn merged<const N: usize>(&self, stretch: &K::Stretch, at: At, x: &[[R; N]]) -> [R; N] {
        let zero = [R::default(); N];
        let (mut sum, mut mass) = (zero, zero);
        let survivors = |k: usize| self.keep.apply(stretch, at, k - 1, x[k], x[k].map(|d| d * self.factors[k - 1]));
        for k in 1..x.len() {
            let v = survivors(k);
            for j in 0..N {
                sum[j] = sum[j] + v[j];
                mass[j] = mass[j] + v[j].magnitude();
            }
        }
        if !ELECT {
            return sum.map(|sum| sum * self.scale);
        }
        let (mut agreeing, mut divisor) = (zero, zero);
        for j in 0..N {
            sum[j] = settled(sum[j], mass[j]);
        }
        for k in 1..x.len() {
            let v = survivors(k);
            for j in 0..N {
                let flipped = v[j].flip_by(sum[j]);
                let agrees = flipped > R::default();
                agreeing[j] = agreeing[j] + flipped.keep_if(agrees);
                divisor[j] = divisor[j] + self.weights[k - 1].keep_if(agrees);
            }
        }
        for j in 0..N {
            let divides = self.normalize & (divisor[j].key() > self.cancelled);
            let divisor = divisor[j].keep_if(divides) + R::ONE.keep_if(!divides);
            agreeing[j] = (agreeing[j] / divisor).flip_by(sum[j]);
        }
        agreeing
    }
}

impl<R: Real, K: Keep<R>, const ELECT: bool> Combine<R> for Needed<R, K, ELECT> {
    type Stretch = K::Stretch;

    fn stretch(&self, from: usize) -> (K::Stretch, usize) {
        self.keep.stretch(from)
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, stretch: &K::Stretch, at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let base = x[0];
        let mut witness = base;
        for k in 1..x.len() {
            see(&mut witness, &x[k]);
            for j in 0..N {
                x[k][j] = x[k][j] - base[j];
            }
        }
        let merged = self.merged(stretch, at, x);
        let mut count = [R::default(); N];
        for k in 1..x.len() {
            for j in 0..N {
                let rest = (merged[j] - x[k][j]).magnitude();
                count[j] = count[j] + R::ONE.keep_if(x[k][j].magnitude() >= self.lambdas[k - 1] * rest);
            }
        }
        let mut y = base;
        for j in 0..N {
            y[j] = y[j] + merged[j].keep_if(count[j] >= self.k);
        }
        (y, witness)
    }
}

/// Checks the thresholds of the masks, one per model.
fn check_masks(lambdas: &[f64], models: usize) -> Checked<(), String> {
    if lambdas.len() != models {
        return Err(format!("{} lambdas, wanted {models}", lambdas.len()));
    }
    lambdas.iter().try_for_each(|lambda| not_negative("lambda", *lambda))
}

impl Merge for ConsensusTa {
    const SWEEPS: u64 = 1;
    // Masks are compared as f32, so that they are the same for every output dtype.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        check_masks(&self.lambdas, self.weights.len())
    }

    fn prepare<F: Lanes>(&self, _: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let Self { weights, lambdas, k, normalize } = self;
        Ok(Box::new(Each(Needed::<F::Real, _, false>::new(All, weights, weights, lambdas, *k, *normalize))))
    }
}

impl Merge for ConsensusTies {
    const SWEEPS: u64 = 2;
    // Magnitudes are ranked and masks are compared as f32, so that they are the same for every output dtype.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        shares(&self.densities, sources)?;
        check_masks(&self.lambdas, self.weights.len())
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        held(sources, rows, columns)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let Self { weights, densities, lambdas, k, normalize, rescale } = self;
        let keep = Largest::of_densities(sweep, densities)?;
        let factors = factors(sweep, &keep, weights, *rescale)?;
        Ok(Box::new(Each(Needed::<F::Real, _, true>::new(keep, weights, &factors, lambdas, *k, *normalize))))
    }
}
