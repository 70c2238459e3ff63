//! Base plus task vectors of which some elements survive, summed, or averaged after a sign election. A method of this
//! family defines which elements survive.
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes, one_stretch};
use crate::real::Real;
use crate::sweep::{Sweep, Terms};

/// Which elements of a task vector survive.
pub trait Keep<R: Real>: Send + Sync {
    /// See [`Combine::Stretch`].
    type Stretch: Default;
    /// Whether a dropped element may be infinite or NaN, so that the sum of the survivors does not show it.
    const HIDES: bool = true;
    /// See [`Combine::UNROLLED`].
    const UNROLLED: bool = false;

    /// See [`Combine::stretch`].
    fn stretch(&self, _from: usize) -> (Self::Stretch, usize) {
        one_stretch()
    }

    /// Returns `v` if the delta `d` of a model (0 is the first after the base) survives, else +0.
    fn apply<const N: usize>(&self, stretch: &Self::Stretch, at: At, model: usize, d: [R; N], v: [R; N]) -> [R; N];
}

/// All elements survive.
pub struct All;

impl<R: Real> Keep<R> for All {
    type Stretch = ();
    const HIDES: bool = false;
    const UNROLLED: bool = true;

    #[inline(always)]
    fn apply<const N: usize>(&self, (): &(), _: At, _: usize, _: [R; N], v: [R; N]) -> [R; N] {
        v
    }
}

/// Computes `x - base`.
#[inline(always)]
fn delta<R: Real, const N: usize>(x: &[R; N], base: &[R; N]) -> [R; N] {
    let mut d = *x;
    for j in 0..N {
        d[j] = d[j] - base[j];
    }
    d
}

/// Computes the survivors of model `k - 1`, times its factor.
#[inline(always)]
fn survivors<R: Real, K: Keep<R>, const N: usize>(
    keep: &K,
    stretch: &K::Stretch,
    at: At,
    k: usize,
    x: &[[R; N]],
    factor: R,
) -> [R; N] {
    let d = delta(&x[k], &x[0]);
    keep.apply(stretch, at, k - 1, d, d.map(|d| d * factor))
}

/// Makes the witness NaN where `x` is an infinity or a NaN: so one that is dropped is seen.
#[inline(always)]
pub fn see<R: Real, const N: usize>(witness: &mut [R; N], x: &[R; N]) {
    for j in 0..N {
        witness[j] = witness[j] + x[j] * R::default();
    }
}

fn list<R: Real>(numbers: &[f64]) -> Vec<R> {
    numbers.iter().map(|x| R::from_f64(*x)).collect()
}

/// `base + scale * sum(factor_k d_k)`.
pub struct Total<R, K> {
    keep: K,
    factors: Vec<R>,
    scale: R,
}

impl<R: Real, K: Keep<R>> Total<R, K> {
    /// Builds the formula. With `normalize` the sum is divided by the sum of `weights` (by 1 if that is below 1e-8),
    /// then multiplied by `lambda`. `factors` are the weights, possibly rescaled.
    pub fn new(keep: K, weights: &[f64], factors: &[f64], normalize: bool, lambda: f64) -> Self {
        let sum: f64 = weights.iter().sum();
        let divisor = if normalize && sum.abs() >= 1e-8 { sum } else { 1.0 };
        Self { keep, factors: list(factors), scale: R::from_f64(lambda / divisor) }
    }

    /// Converts it to a kernel.
    pub fn kernel<F: Lanes<Real = R>>(self) -> Box<dyn Kernel<F>>
    where
        K: 'static,
    {
        Box::new(Each(self))
    }
}

impl<R: Real, K: Keep<R>> Combine<R> for Total<R, K> {
    type Stretch = K::Stretch;
    const UNROLLED: bool = K::UNROLLED;
    const WITNESS: bool = K::HIDES;

    fn stretch(&self, from: usize) -> (K::Stretch, usize) {
        self.keep.stretch(from)
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, stretch: &K::Stretch, at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let factors = &self.factors[..x.len() - 1];
        let mut mix = [R::default(); N];
        // The first model is not peeled off the loop: then the inputs would leave the registers, at twice the time.
        for k in 1..x.len() {
            let v = survivors(&self.keep, stretch, at, k, x, factors[k - 1]);
            for j in 0..N {
                mix[j] = if k == 1 { v[j] } else { mix[j] + v[j] };
            }
        }
        let mut y = x[0];
        for j in 0..N {
            y[j] = y[j] + mix[j] * self.scale;
        }
        let mut witness = y;
        if K::HIDES {
            x[1..].iter().for_each(|x| see(&mut witness, x));
        }
        (y, witness)
    }
}

/// Ratio of a sum to the sum of its terms' magnitudes below which it is rounding noise. Weights like 0.5, 0.3 and 0.2
/// are not exact in binary, so terms that cancel in decimals leave a residue of either sign.
const NOISE: f64 = 1.0 / (1 << 20) as f64;

/// Returns the sum of votes, or +0 for a draw: no larger than the noise of `mass`, the sum of their magnitudes.
/// Infinities are no draw.
#[inline(always)]
pub fn settled<R: Real>(sum: R, mass: R) -> R {
    // The next number after NOISE with >=: then a sum of exactly NOISE is a draw, and infinity over infinity is not.
    sum.keep_if(sum.magnitude() >= mass * R::from_f64(NOISE * (1.0 + R::EPSILON)))
}

/// Returns the largest divisor that is a sum of cancelling weights: noise if weights have both signs, and always less
/// than any single weight.
pub fn cancelled(weights: &[f64]) -> f64 {
    let mixed = weights.iter().any(|w| *w < 0.0) && weights.iter().any(|w| *w > 0.0);
    let mass: f64 = weights.iter().map(|w| w.abs()).sum();
    let least = weights.iter().map(|w| w.abs()).filter(|w| *w > 0.0).fold(f64::INFINITY, f64::min);
    if mixed { (mass * NOISE).min(least / 2.0) } else { 0.0 }
}

/// `base + sign * lambda * agreeing / divisor`: the mean over the survivors that have the elected sign. `COUNT` elects
/// the sign of the majority instead of the sign of their sum; plus in a draw.
pub struct Elect<R: Real, K, const COUNT: bool> {
    keep: K,
    weights: Vec<R>,
    factors: Vec<R>,
    normalize: bool,
    /// A divisor up to this is replaced by one; see [`cancelled`].
    cancelled: R::Key,
    lambda: R,
}

impl<R: Real, K: Keep<R>, const COUNT: bool> Elect<R, K, COUNT> {
    /// Builds the formula. With `normalize` the agreeing survivors are divided by the sum of their weights. `factors`
    /// are the weights, possibly rescaled.
    pub fn new(keep: K, weights: &[f64], factors: &[f64], normalize: bool, lambda: f64) -> Self {
        Self {
            keep,
            weights: list(weights),
            factors: list(factors),
            normalize,
            cancelled: R::from_f64(cancelled(weights)).key(),
            lambda: R::from_f64(lambda),
        }
    }

    /// Converts it to a kernel.
    pub fn kernel<F: Lanes<Real = R>>(self) -> Box<dyn Kernel<F>>
    where
        K: 'static,
    {
        Box::new(Each(self))
    }
}

impl<R: Real, K: Keep<R>, const COUNT: bool> Combine<R> for Elect<R, K, COUNT> {
    type Stretch = K::Stretch;
    const UNROLLED: bool = K::UNROLLED;

    fn stretch(&self, from: usize) -> (K::Stretch, usize) {
        self.keep.stretch(from)
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, stretch: &K::Stretch, at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (weights, factors) = (&self.weights[..x.len() - 1], &self.factors[..x.len() - 1]);
        let zero = R::default();
        let (mut sum, mut votes, mut hidden) = ([zero; N], [zero; N], [zero; N]);
        for k in 1..x.len() {
            if K::HIDES {
                see(&mut hidden, &x[k]);
            }
            let v = survivors(&self.keep, stretch, at, k, x, factors[k - 1]);
            for j in 0..N {
                sum[j] = sum[j] + v[j];
                votes[j] = votes[j] + if COUNT { v[j].signum_or_zero() } else { v[j].magnitude() };
            }
            x[k] = v;
        }
        if !COUNT {
            for j in 0..N {
                votes[j] = settled(sum[j], votes[j]);
            }
        }
        // With the elected sign flipped in, agreeing deltas are positive; zeros never agree.
        let (mut agreeing, mut divisor) = ([zero; N], [zero; N]);
        for k in 1..x.len() {
            for j in 0..N {
                let flipped = x[k][j].flip_by(votes[j]);
                let agrees = flipped > zero;
                agreeing[j] = agreeing[j] + flipped.keep_if(agrees);
                divisor[j] = divisor[j] + weights[k - 1].keep_if(agrees);
            }
        }
        if self.normalize {
            for j in 0..N {
                let whole = divisor[j].key() > self.cancelled;
                agreeing[j] = agreeing[j] / (divisor[j].keep_if(whole) + R::ONE.keep_if(!whole));
            }
        }
        let mut y = x[0];
        for j in 0..N {
            y[j] = y[j] + (agreeing[j] * self.lambda).flip_by(votes[j]);
        }
        if K::HIDES {
            for j in 0..N {
                hidden[j] = hidden[j] + sum[j];
            }
            return (y, hidden);
        }
        (y, sum)
    }
}

/// Builds the kernel of a method that keeps some elements: [`Elect`] with `ELECT`, else [`Total`].
pub fn added<F: Lanes, K: Keep<F::Real> + 'static, const ELECT: bool>(
    keep: K,
    weights: &[f64],
    factors: &[f64],
    normalize: bool,
    lambda: f64,
) -> Box<dyn Kernel<F>> {
    if ELECT {
        Elect::<_, _, false>::new(keep, weights, factors, normalize, lambda).kernel()
    } else {
        Total::new(keep, weights, factors, normalize, lambda).kernel()
    }
}

/// Sums `|d|` over all elements and over the survivors of one model.
pub struct Masses<'a, K> {
    /// Which elements survive.
    pub keep: &'a K,
    /// The model; 0 is the first after the base.
    pub model: usize,
}

impl<R: Real, K: Keep<R>> Terms<R, 2, 2> for Masses<'_, K> {
    type Stretch = K::Stretch;

    fn reads(&self) -> [usize; 2] {
        [0, self.model + 1]
    }

    fn stretch(&self, from: usize) -> (K::Stretch, usize) {
        self.keep.stretch(from)
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, stretch: &K::Stretch, at: At, [base, x]: [[R; N]; 2]) -> [[f64; N]; 2] {
        let d = delta(&x, &base);
        let all = d.map(R::magnitude);
        let kept = self.keep.apply(stretch, at, self.model, d, all);
        [all.map(R::to_f64), kept.map(R::to_f64)]
    }
}

/// Computes the factors of the survivors: the weights, with `rescale` those of [`rescaled`], which take one more sweep.
pub fn factors<F: Lanes, K: Keep<F::Real>>(
    sweep: &Sweep<F>,
    keep: &K,
    weights: &[f64],
    rescale: bool,
) -> Result<Vec<f64>> {
    if !rescale {
        return Ok(weights.to_vec());
    }
    let masses: Vec<_> = (0..weights.len()).map(|model| Masses { keep, model }).collect();
    Ok(rescaled(weights, &sweep.sums(&masses)?))
}

/// Multiplies weights so that each task vector keeps its L1 norm, from the sums of [`Masses`]; by 1 if either norm is below
/// 1e-7.
pub fn rescaled(weights: &[f64], masses: &[[f64; 2]]) -> Vec<f64> {
    let share = |[all, kept]: &[f64; 2]| if *all < 1e-7 || *kept < 1e-7 { 1.0 } else { all / kept };
    weights.iter().zip(masses).map(|(weight, masses)| weight * share(masses)).collect()
}
