//! SCE: variances, mean squares and shares are rounded.
use super::added::{in_order, over_models};
use super::reductions::{Sum, Terms, reduced_all};
use super::rounding::{Round, single};
use crate::dtype::F32;
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::delta::see;
use crate::methods::sce::Sce;
use crate::real::Real;
use crate::sweep::Sweep;
use crate::sweep::select::{Made, Threshold};
use std::marker::PhantomData;

/// The variance of the task vectors, with running means in f64 (Welford).
struct Variance<D>(PhantomData<D>);

#[inline(always)]
fn variance<R: Real, D: Round, const N: usize>(x: &[[R; N]]) -> [R; N] {
    let (mut mean, mut squares) = ([0.0f64; N], [0.0f64; N]);
    for k in 1..x.len() {
        for j in 0..N {
            let d = D::round(x[k][j] - x[0][j]).to_f64();
            let from = d - mean[j];
            mean[j] += from / k as f64;
            squares[j] += from * (d - mean[j]);
        }
    }
    squares.map(|sum| D::round(R::from_f64(sum / (x.len() - 1) as f64)))
}

impl<R: Real, D: Round> Combine<R> for Variance<D> {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let v = variance::<R, D, N>(x);
        (v, v)
    }
}

/// `base + sum(share_k d_k) / sum(share_k)` over those that agree.
struct Erased<R, D> {
    shares: Vec<R>,
    /// Which elements are selected, by the variance.
    selected: Option<Threshold>,
    /// See [`in_order`].
    rest: usize,
    dtype: PhantomData<D>,
}

/// Returns the kernel of `sce`.
pub fn sce<F: Lanes, D: Round>(method: &Sce, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
    let made = sweep.sources().len();
    let kernel = Each(Variance::<D>(PhantomData));
    let (mut selected, mut with) = (None, None);
    if method.select_topk < 1.0 {
        let with = with.insert(sweep.with(&kernel));
        // The product is made in f32.
        let wanted = |not_zero| (not_zero as f32 * method.select_topk as f32) as usize;
        selected = Some(with.select_part(&Made(made), wanted)?);
    }
    let reads: Vec<usize> = (0..made + usize::from(selected.is_some())).collect();
    let mut stretch = selected.map(|found| found.above::<F::Real>(0));
    let means = reduced_all::<Sum, F32, F>(
        with.as_ref().unwrap_or(sweep),
        &reads,
        0..sweep.len(),
        made - 1,
        |at, x, found| {
            if let (Some(threshold), Some((_, end))) = (selected, stretch)
                && at >= end
            {
                stretch = Some(threshold.above::<F::Real>(at));
            }
            let kept = stretch.is_none_or(|(key, _)| single::<F::Real>(x[made].into()).key() > key);
            for (model, found) in found.iter_mut().enumerate() {
                let d = D::narrow(x[model + 1] - x[0]);
                *found = if kept { D::narrow(d * d) } else { 0.0 };
            }
        },
    )?;
    let means: Vec<f32> = means.iter().map(|sum| D::narrow(sum / sweep.len() as f32)).collect();
    let mut total = Terms::<Sum>::new::<D>(means.len());
    for mean in &means {
        total.push(*mean);
    }
    let total = D::narrow(total.total());
    let even = D::narrow(1.0 / means.len() as f32);
    let share = |mean: &f32| if total.abs() < D::narrow(1e-6) { even } else { D::narrow(mean / total) };
    let shares = means.iter().map(|mean| single(share(mean).into())).collect();
    let rest = in_order::<D>(sweep.len());
    Ok(Box::new(Each(Erased::<F::Real, D> { shares, selected, rest, dtype: PhantomData })))
}

impl<R: Real, D: Round> Combine<R> for Erased<R, D> {
    /// The key above which elements are selected, and whether every fourth model is summed first.
    type Stretch = (Option<R::Key>, bool);

    fn stretch(&self, from: usize) -> (Self::Stretch, usize) {
        let found = self.selected.map(|threshold| threshold.above::<R>(from));
        let end = found.map_or(usize::MAX, |(_, end)| end);
        let fourth = from >= self.rest;
        ((found.map(|(key, _)| key), fourth), if fourth { end } else { end.min(self.rest) })
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, (key, fourth): &Self::Stretch, _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (shares, zero, mut y) = (&self.shares[..x.len() - 1], R::default(), x[0]);
        let v = key.map(|key| variance::<R, D, N>(x).map(|v| v.key() > key));
        let mut witness = y;
        for k in 1..x.len() {
            see(&mut witness, &x[k]);
            for j in 0..N {
                x[k][j] = D::round(x[k][j] - y[j]).keep_if(v.is_none_or(|v| v[j]));
            }
        }
        let (models, count) = (&x[1..], x.len() - 1);
        let votes = over_models(count, *fourth, |k| models[k]);
        let votes = votes.map(|sum| if D::round(sum) >= zero { R::ONE } else { zero - R::ONE });
        let agreed = |k: usize| -> [R; N] {
            std::array::from_fn(|j| {
                let model: &[R; N] = &models[k];
                shares[k].keep_if(model[j].flip_by(votes[j]) > zero)
            })
        };
        let product = |k: usize| -> [R; N] {
            let (share, model): (_, &[R; N]) = (agreed(k), &models[k]);
            std::array::from_fn(|j| D::round(model[j] * share[j]))
        };
        let sum = over_models(count, *fourth, product);
        let divisor = over_models(count, *fourth, agreed);
        let least = D::number(1e-6);
        for j in 0..N {
            let divisor = D::round(divisor[j]);
            let divisor = if divisor < least { least } else { divisor };
            y[j] = D::round(y[j] + D::round(D::round(sum[j]) / divisor));
        }
        (y, witness)
    }
}
