//! Model Stock (Jang et al., 2024): the mean of the models, moved towards the base by how far they disagree: the larger the
//! angles between their task vectors, the nearer to the base. One angle per tensor or, with `filter_wise`, per row. As in
//! mergekit a product of norms below 1e-6 counts as 1e-6, and a negative mean cosine is not cut off.
use super::{Checked, Merge};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;
use crate::sweep::gram::Gram;

/// From the base (the first source) towards the mean of the others.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelStock {
    /// One ratio per row instead of one per tensor.
    pub filter_wise: bool,
}

/// Returns how far to go from the base to the mean: 1 if all task vectors are parallel, 0 if they are perpendicular.
fn ratio(gram: &Gram) -> f64 {
    let count = gram.len() as f64;
    let pairs = (0..gram.len()).flat_map(|a| (a + 1..gram.len()).map(move |b| (a, b)));
    let cosine = |(a, b)| (gram.product(a, b) / (gram.norm(a) * gram.norm(b)).max(1e-6)).clamp(-1.0, 1.0);
    let mean = pairs.map(cosine).sum::<f64>() / (count * (count - 1.0) / 2.0);
    let divisor = 1.0 + (count - 1.0) * mean;
    if divisor.abs() < 1e-6 { 0.0 } else { count * mean / divisor }
}

/// `base + ratio * mean(x_k - base)`, with one ratio per row.
struct Moved<R> {
    /// Over the number of models.
    ratios: Vec<R>,
    columns: usize,
}

impl<R: Real> Combine<R> for Moved<R> {
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
        let mut sum = [R::default(); N];
        for k in 1..x.len() {
            for j in 0..N {
                sum[j] = sum[j] + (x[k][j] - x[0][j]);
            }
        }
        let mut y = x[0];
        for j in 0..N {
            y[j] = y[j] + sum[j] * *ratio;
        }
        (y, y)
    }
}

impl Merge for ModelStock {
    const SWEEPS: u64 = 2;

    fn check(&self, sources: usize) -> Checked<(), String> {
        if sources < 3 { Err(format!("{sources} sources, wanted a base and two models or more")) } else { Ok(()) }
    }

    fn resident(&self, rows: usize, _: usize, _: usize) -> usize {
        if self.filter_wise { rows.saturating_mul(2 * size_of::<f64>()) } else { 0 }
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let ratios = if self.filter_wise && sweep.rows > 1 {
            sweep.grams_of_rows(|gram| ratio(&gram))?
        } else {
            vec![ratio(&sweep.gram(true)?)]
        };
        let count = (sweep.sources().len() - 1) as f64;
        let ratios = ratios.into_iter().map(|ratio| F::Real::from_f64(ratio / count)).collect();
        Ok(Box::new(Each(Moved { ratios, columns: sweep.columns })))
    }
}
