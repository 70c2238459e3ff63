//! TIES: trim, elect sign, disjoint mean (Yadav et al., 2023). Where mol, like mergekit, departs from the paper: trimming
//! is per tensor, and the weighted task vectors vote and are averaged by weight.
use super::{Kernel, Map, Peaks, STRIP, Sum, sweep};
use crate::dtype::Format;
use crate::real::Real;
use crate::simd::{Simd, Task};

/// How the sign of an element is elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sign of the sum of the weighted deltas, plus where they cancel.
    Total,
    /// The sign that more of the weighted deltas have, plus in a draw.
    Count,
}

/// TIES for one run of elements; input 0 is the base, entry 0 of each list belongs to it and is not used.
#[derive(Clone, Debug)]
pub struct Ties<R: Real> {
    weights: Vec<R>,
    /// Weight times the factor that rescaling asks for.
    factors: Vec<R>,
    /// A delta survives where its key is above this.
    thresholds: Vec<R::Key>,
    normalize: bool,
    /// A divisor up to this counts as one; see [`cancelled`].
    cancelled: R::Key,
    lambda: R,
    majority: MajoritySign,
}

/// Of a sum and the sum of its terms' magnitudes: what is smaller than this ratio is rounding noise. Weights like 0.5, 0.3
/// and 0.2 are not exact in binary, so terms that cancel in decimals leave a residue of either sign.
const NOISE: f64 = 1.0 / (1 << 20) as f64;

#[derive(Clone, Copy)]
struct Elect<R: Real, const N: usize, const NORMALIZE: bool> {
    weights: [R; N],
    factors: [R; N],
    thresholds: [R::Key; N],
    cancelled: R::Key,
    lambda: R,
}

/// A delta after trimming, weighted.
#[inline(always)]
fn trimmed<R: Real>(x: R, base: R, factor: R, threshold: R::Key) -> R {
    let delta = x - base;
    (delta * factor).keep_if(delta.key() > threshold)
}

/// The sum of votes, or +0 where it is a draw: no larger than the noise of `mass`, the sum of their magnitudes. Infinities
/// are no draw.
#[inline(always)]
fn settled<R: Real>(sum: R, mass: R) -> R {
    // The next number after NOISE with >=, so that a sum of exactly NOISE is a draw and infinity over infinity is none.
    sum.keep_if(sum.magnitude() >= mass * R::from_f64(NOISE * (1.0 + R::EPSILON)))
}

/// The largest divisor that is a sum of weights which cancel: noise where weights have both signs, and always less than
/// any weight by itself.
fn cancelled(weights: &[f64]) -> f64 {
    let mixed = weights.iter().any(|w| *w < 0.0) && weights.iter().any(|w| *w > 0.0);
    let mass: f64 = weights.iter().map(|w| w.abs()).sum();
    let least = weights.iter().map(|w| w.abs()).filter(|w| *w > 0.0).fold(f64::INFINITY, f64::min);
    if mixed { (mass * NOISE).min(least / 2.0) } else { 0.0 }
}

/// `base + sign * lambda * agreeing / divisor`, a divisor that cancels counting as one.
#[inline(always)]
fn settle<R: Real>(base: R, sign: R, agreeing: R, divisor: Option<(R, R::Key)>, lambda: R) -> R {
    let mix = match divisor {
        Some((d, cancelled)) => {
            let whole = d.key() > cancelled;
            agreeing / (d.keep_if(whole) + R::ONE.keep_if(!whole))
        }
        None => agreeing,
    };
    base + (mix * lambda).flip_by(sign)
}

impl<R: Real, const N: usize, const NORMALIZE: bool> Map<R, N> for Elect<R, N, NORMALIZE> {
    #[inline(always)]
    fn call(&self, x: [R; N]) -> (R, R) {
        let mut v = [R::default(); N];
        let (mut sum, mut mass) = (R::default(), R::default());
        for k in 1..N {
            v[k] = trimmed(x[k], x[0], self.factors[k], self.thresholds[k]);
            sum = sum + v[k];
            mass = mass + v[k].magnitude();
        }
        let elected = settled(sum, mass);
        // With the elected sign flipped in, agreeing deltas are the positive ones; zeros never agree.
        let (mut agreeing, mut divisor) = (R::default(), R::default());
        for k in 1..N {
            let flipped = v[k].flip_by(elected);
            let agrees = flipped > R::default();
            agreeing = agreeing + flipped.keep_if(agrees);
            divisor = divisor + self.weights[k].keep_if(agrees);
        }
        let divisor = NORMALIZE.then_some((divisor, self.cancelled));
        let y = settle(x[0], elected, agreeing, divisor, self.lambda);
        // A NaN or an infinity has the largest magnitude, so it survives trimming and shows in the sum.
        (y, sum)
    }
}

impl<R: Real> Ties<R> {
    /// One weight and one rescaling factor a model; see [`Self::with_thresholds`] for the rest.
    pub fn new(weights: &[f64], rescale: &[f64], normalize: bool, lambda: f64, majority: MajoritySign) -> Self {
        let with_base = |models: Vec<f64>| std::iter::once(0.0).chain(models).map(R::from_f64).collect();
        Self {
            weights: with_base(weights.to_vec()),
            factors: with_base(weights.iter().zip(rescale).map(|(w, r)| w * r).collect()),
            thresholds: Vec::new(),
            normalize,
            cancelled: R::from_f64(cancelled(weights)).key(),
            lambda: R::from_f64(lambda),
            majority,
        }
    }

    /// The same with a threshold a model: a delta survives where its key is above it.
    #[must_use]
    pub fn with_thresholds(&self, thresholds: impl Iterator<Item = i64>) -> Self {
        let thresholds = std::iter::once(0).chain(thresholds).map(R::narrow_key).collect();
        Self { thresholds, ..self.clone() }
    }

    fn fused<F: Format<Real = R>, const N: usize>(&self, simd: Simd, x: &[&[u8]], y: &mut [u8]) -> Peaks<R> {
        let weights = std::array::from_fn(|k| self.weights[k]);
        let factors = std::array::from_fn(|k| self.factors[k]);
        let thresholds = std::array::from_fn(|k| self.thresholds[k]);
        let Self { cancelled, lambda, .. } = *self;
        if self.normalize {
            sweep::<F, _, N>(simd, Elect::<R, N, true> { weights, factors, thresholds, cancelled, lambda }, x, y)
        } else {
            sweep::<F, _, N>(simd, Elect::<R, N, false> { weights, factors, thresholds, cancelled, lambda }, x, y)
        }
    }

    /// Inputs that one fused sweep can take.
    pub fn fused_inputs(&self) -> usize {
        if self.majority == MajoritySign::Total { Kernel::<R>::FUSED } else { 0 }
    }

    /// See [`Kernel::apply`].
    pub fn apply<F: Format<Real = R>>(&self, simd: Simd, inputs: &[&[u8]], output: &mut [u8]) -> Peaks<R> {
        if inputs.len() > self.fused_inputs() {
            return simd.run(Strip::<F> { kernel: self, inputs, output });
        }
        match inputs.len() {
            2 => self.fused::<F, 2>(simd, inputs, output),
            3 => self.fused::<F, 3>(simd, inputs, output),
            4 => self.fused::<F, 4>(simd, inputs, output),
            _ => self.fused::<F, 5>(simd, inputs, output),
        }
    }
}

/// The same for any number of models and either election, one strip at a time.
struct Strip<'a, F: Format> {
    kernel: &'a Ties<F::Real>,
    inputs: &'a [&'a [u8]],
    output: &'a mut [u8],
}

impl<F: Format> Task for Strip<'_, F> {
    type Output = Peaks<F::Real>;
    #[inline(always)]
    fn run(self) -> Peaks<F::Real> {
        let ties = self.kernel;
        let count = self.output.len() / F::BYTES;
        let zero = F::Real::default();
        let mut scratch = [[zero; STRIP]; 4];
        let [sums, votes, agreeing, divisors] = scratch.each_mut().map(|strip| &mut strip[..count]);
        let by_count = ties.majority == MajoritySign::Count;
        let base = self.inputs[0];
        for (k, x) in self.inputs.iter().enumerate().skip(1) {
            let (factor, threshold) = (ties.factors[k], ties.thresholds[k]);
            for i in 0..count {
                let v = trimmed(F::get(x, i), F::get(base, i), factor, threshold);
                sums[i] = sums[i] + v;
                votes[i] = votes[i] + if by_count { v.signum_or_zero() } else { v.magnitude() };
            }
        }
        if !by_count {
            for (vote, sum) in votes.iter_mut().zip(&*sums) {
                *vote = settled(*sum, *vote);
            }
        }
        for (k, x) in self.inputs.iter().enumerate().skip(1) {
            let (factor, threshold, weight) = (ties.factors[k], ties.thresholds[k], ties.weights[k]);
            for i in 0..count {
                let flipped = trimmed(F::get(x, i), F::get(base, i), factor, threshold).flip_by(votes[i]);
                let agrees = flipped > zero;
                agreeing[i] = agreeing[i] + flipped.keep_if(agrees);
                divisors[i] = divisors[i] + weight.keep_if(agrees);
            }
        }
        let mut peaks = Peaks::default();
        for (i, y) in self.output.chunks_exact_mut(F::BYTES).enumerate() {
            let divisor = ties.normalize.then_some((divisors[i], ties.cancelled));
            let value = settle(F::get(base, i), votes[i], agreeing[i], divisor, ties.lambda);
            peaks = peaks.see(value, sums[i]);
            F::put(value, y);
        }
        peaks
    }
}

/// `sum |d|` and `sum |d|` of the survivors, of one block: what L1 rescaling divides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Masses([Sum; 2]);

/// Adds a run of a block to its masses.
struct Weigh<'a, F: Format> {
    masses: &'a mut Masses,
    base: &'a [u8],
    x: &'a [u8],
    threshold: <F::Real as Real>::Key,
    /// Equal magnitudes survive before this element of the run.
    cut: usize,
}

impl<F: Format> Task for Weigh<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let mut sums = *self.masses;
        for i in 0..self.x.len() / F::BYTES {
            let delta = F::get(self.x, i) - F::get(self.base, i);
            let survives = delta.key() > self.threshold || (delta.key() == self.threshold && i < self.cut);
            let magnitude = delta.to_f64().abs();
            sums.0[0].add_one(i, magnitude);
            sums.0[1].add_one(i, magnitude.keep_if(survives));
        }
        *self.masses = sums;
    }
}

impl Masses {
    /// Adds a run of at most one block; see [`Sum`] for its length. Equal magnitudes survive before element `cut`.
    pub fn add<F: Format>(&mut self, simd: Simd, base: &[u8], x: &[u8], threshold: i64, cut: usize) {
        let threshold = F::Real::narrow_key(threshold);
        simd.run(Weigh::<F> { masses: self, base, x, threshold, cut });
    }

    /// Both sums of the block.
    pub fn totals(&self) -> [f64; 2] {
        self.0.map(|sum| sum.total())
    }
}

/// What survivors are multiplied by to keep the L1 norm of the task vector; 1 where either sum is below 1e-7.
pub fn rescale([all, kept]: [f64; 2]) -> f64 {
    if all < 1e-7 || kept < 1e-7 { 1.0 } else { all / kept }
}
