//! Model Stock: norms and dot products of task vectors are rounded, and so are cosines, their mean and the ratio.
use super::added::{in_order, over_models};
use super::reductions::{Norm, Sum, reduced_all, reduced_numbers};
use super::rounding::{Round, single};
use crate::dtype::F32;
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::model_stock::ModelStock;
use crate::real::Real;
use crate::sweep::Sweep;
use std::marker::PhantomData;
use std::ops::Range;

/// `ratio * mean(x_k) + (1 - ratio) * base`, with one ratio per row.
struct Moved<R, D> {
    ratios: Vec<R>,
    columns: usize,
    dtype: PhantomData<D>,
}

/// Returns the kernel of `model_stock`.
pub fn model_stock<F: Lanes, D: Round>(method: &ModelStock, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
    let cosines = if method.filter_wise && sweep.rows > 1 {
        sweep.each_row(|row| cosines::<F, D>(sweep, row))?
    } else {
        vec![cosines::<F, D>(sweep, 0..sweep.len())?]
    };
    let (rows, in_order) = (cosines.len(), in_order::<F32>(cosines.len()));
    let count = (sweep.sources().len() - 1) as f32;
    let ratio = |(row, cosines): (usize, &Vec<f32>)| {
        let sum = if rows == 1 {
            reduced_numbers::<Sum>(cosines)
        } else {
            over_models(cosines.len(), row >= in_order, |pair| [cosines[pair]])[0]
        };
        let mean = D::narrow(sum / cosines.len() as f32);
        let divisor = D::narrow(1.0 + D::narrow((count - 1.0) * mean));
        single(if divisor.abs() < D::narrow(1e-6) { 0.0 } else { D::narrow(D::narrow(count * mean) / divisor).into() })
    };
    Ok(Box::new(Each(Moved::<F::Real, D> {
        ratios: cosines.iter().enumerate().map(ratio).collect(),
        columns: sweep.columns,
        dtype: PhantomData,
    })))
}

/// Returns the cosines of all pairs of task vectors.
fn cosines<F: Lanes, D: Round>(sweep: &Sweep<F>, at: Range<usize>) -> Result<Vec<f32>> {
    let (all, models) = (sweep.all(), sweep.sources().len() - 1);
    let pairs: Vec<[usize; 2]> = (0..models).flat_map(|a| (a + 1..models).map(move |b| [a, b])).collect();
    let delta = |x: &[f32], model: usize| D::narrow(x[model + 1] - x[0]);
    let norms = reduced_all::<Norm, D, F>(sweep, &all, at.clone(), models, |_, x, found| {
        (0..models).for_each(|model| found[model] = delta(x, model));
    })?;
    let products = reduced_all::<Sum, D, F>(sweep, &all, at, pairs.len(), |_, x, found| {
        found.iter_mut().zip(&pairs).for_each(|(found, [a, b])| *found = D::narrow(delta(x, *a) * delta(x, *b)));
    })?;
    let cosine = |(product, [a, b]): (&f32, &[usize; 2])| {
        let lengths = D::narrow(norms[*a] * norms[*b]).max(D::narrow(1e-6));
        D::narrow(product / lengths).clamp(-1.0, 1.0)
    };
    Ok(products.iter().zip(&pairs).map(cosine).collect())
}

impl<R: Real, D: Round> Combine<R> for Moved<R, D> {
    type Stretch = R;
    const WITNESS: bool = false;

    fn stretch(&self, from: usize) -> (R, usize) {
        match self.ratios[..] {
            [ratio] => (ratio, usize::MAX),
            _ => (self.ratios[from / self.columns], (from / self.columns + 1) * self.columns),
        }
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, ratio: &R, _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (models, mut y) = (&x[1..], x[0]);
        let count = R::from_f64(models.len() as f64);
        let mut sum = models[0];
        for model in &models[1..] {
            for j in 0..N {
                sum[j] = D::round(sum[j] + model[j]);
            }
        }
        for j in 0..N {
            let mean = D::round(sum[j] / count);
            y[j] = D::round(D::round(*ratio * mean) + D::round(D::round(R::ONE - *ratio) * y[j]));
        }
        (y, y)
    }
}
