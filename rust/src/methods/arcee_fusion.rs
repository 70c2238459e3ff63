//! Arcee Fusion (Arcee AI, 2025): the elements of the other model that matter most, those of the base elsewhere. An
//! element's importance is its distance from the base times the divergence of its row from the base's, both as softmax
//! distributions; the threshold is the median plus one and a half quartile ranges. mol differs from mergekit: quantiles are
//! those of the whole tensor, not of a random sample, divergences are f64, and the result has the dtype of the recipe.
use super::{Checked, Merge, expect};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes, W};
use crate::math::{exp, ln};
use crate::real::Real;
use crate::simd::Task;
use crate::sweep::select::{COLLECT, Made};
use crate::sweep::{STRIP, Sweep, Terms};
use std::marker::PhantomData;
use std::ops::Range;

/// The second source where it is important, the first elsewhere.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArceeFusion {}

impl Merge for ArceeFusion {
    const SWEEPS: u64 = 4;
    // Importance is ranked as f32, so that the same elements are chosen for every dtype of the result.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        expect(sources, 2)
    }

    fn resident(&self, rows: usize, columns: usize, _: usize) -> usize {
        let keys = 3 * COLLECT.min(rows.saturating_mul(columns)) * size_of::<i64>();
        keys.saturating_add(rows.saturating_mul(2 * size_of::<f64>()))
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let divergences = sweep.each_row(|row| divergence(sweep, row))?;
        let rows: Vec<F::Real> = divergences.into_iter().map(F::Real::from_f64).collect();
        let columns = sweep.columns;
        let importance = Each(Importance { rows: &rows, columns });
        let threshold = fence(&sweep.with(&importance))?;
        Ok(Box::new(Each(Chosen { rows, columns, threshold })))
    }
}

/// Returns the smallest number of the working precision that is not below the threshold of the importance, which is the
/// source after the last.
fn fence<F: Lanes>(sweep: &Sweep<F>) -> Result<F::Real> {
    let (made, len) = (sweep.sources().len(), sweep.len());
    if len == 0 {
        return Ok(F::Real::default());
    }
    // The number of elements below a quantile; the k-th smallest is the (len - k)-th largest, k counted from 0.
    let below = |share: f64| (share * (len - 1) as f64) as usize;
    let found = sweep.select(&[(Made(made), [0.25, 0.5, 0.75].map(|share| len - below(share)).to_vec())])?;
    let mut least = F::Real::TOP;
    if below(0.25) == 0 {
        // A search for the last rank keeps all elements and does not look at them.
        sweep.strips(&[made], 0..len, len, |strip, inputs| {
            least = (0..strip.len()).map(|i| F::get(inputs[0], i).key().into()).fold(least, i64::min);
            Ok(())
        })?;
    }
    let number = |key: i64| F::Real::from_key(F::Real::narrow_key(if key < 0 { least } else { key })).to_f64();
    let [low, median, high] = [found[0].key, found[1].key, found[2].key].map(number);
    let threshold = median + 1.5 * (high - low);
    let near = F::Real::from_f64(threshold);
    let key: i64 = near.key().into();
    Ok(if near.to_f64() < threshold { F::Real::from_key(F::Real::narrow_key(key + 1)) } else { near })
}

/// `|b - a|` times the divergence of the row.
#[derive(Clone, Copy)]
struct Importance<'a, R> {
    rows: &'a [R],
    columns: usize,
}

impl<R: Real> Importance<'_, R> {
    #[inline(always)]
    fn of<const N: usize>(&self, at: At, a: [R; N], b: [R; N]) -> [R; N] {
        let mut y = a;
        let (first, last) = (at.first / self.columns, (at.first + (N - 1) * at.step) / self.columns);
        if first == last {
            let divergence = self.rows[first];
            for j in 0..N {
                y[j] = (b[j] - a[j]).magnitude() * divergence;
            }
        } else {
            for j in 0..N {
                y[j] = (b[j] - a[j]).magnitude() * self.rows[(at.first + j * at.step) / self.columns];
            }
        }
        y
    }
}

impl<R: Real> Combine<R> for Importance<'_, R> {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let y = self.of(at, x[0], x[1]);
        (y, y)
    }
}

/// The other model's element if its importance reaches `threshold`.
struct Chosen<R> {
    rows: Vec<R>,
    columns: usize,
    threshold: R,
}

impl<R: Real> Combine<R> for Chosen<R> {
    type Stretch = ();

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (a, b) = (x[0], x[1]);
        let importance = Importance { rows: &self.rows, columns: self.columns }.of(at, a, b);
        let (mut y, mut witness) = (a, a);
        for j in 0..N {
            y[j] = if importance[j] >= self.threshold { b[j] } else { a[j] };
            // NaN if one of them is infinite or NaN, else zero.
            witness[j] = a[j] * R::default() + b[j] * R::default();
        }
        (y, witness)
    }
}

/// Computes the divergence of a row of the second source from that of the first (Kullback and Leibler, 1951), both as
/// softmax distributions: the sum of `p * ln(p / q)`, each probability plus 1e-8.
fn divergence<F: Lanes>(sweep: &Sweep<F>, row: Range<usize>) -> Result<f64> {
    let mut peaks = [f64::NEG_INFINITY; 2];
    sweep.strips(&[0, 1], row.clone(), STRIP, |_, inputs| {
        for (peak, input) in peaks.iter_mut().zip(inputs) {
            *peak = peak.max(sweep.settings.simd.run(Peak::<F>(input, PhantomData)));
        }
        Ok(())
    })?;
    let masses = sweep.sums_of_row(&[Masses(peaks)], row.clone())?[0];
    let [sum] = sweep.sums_of_row(&[Divergence { peaks, masses }], row)?[0];
    Ok(sum.max(0.0))
}

/// The largest element of a strip.
struct Peak<'a, F>(&'a [u8], PhantomData<F>);

impl<F: Lanes> Task for Peak<'_, F> {
    type Output = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let elements = self.0.len() / F::BYTES;
        let whole = elements / W * W;
        let mut peaks = [f64::NEG_INFINITY; W];
        for i in (0..whole).step_by(W) {
            let x = F::in_order::<W>(self.0, i).map(F::Real::to_f64);
            for j in 0..W {
                peaks[j] = if x[j] > peaks[j] { x[j] } else { peaks[j] };
            }
        }
        let rest = (whole..elements).map(|i| F::get(self.0, i).to_f64());
        peaks.into_iter().chain(rest).fold(f64::NEG_INFINITY, f64::max)
    }
}

/// `exp(x - peak)` of both sources.
struct Masses([f64; 2]);

#[inline(always)]
fn masses<R: Real, const N: usize>(x: [R; N], peak: f64) -> [f64; N] {
    exp(x.map(|x| x.to_f64() - peak))
}

impl<R: Real> Terms<R, 2, 2> for Masses {
    type Stretch = ();

    fn reads(&self) -> [usize; 2] {
        [0, 1]
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, (): &(), _: At, [a, b]: [[R; N]; 2]) -> [[f64; N]; 2] {
        [masses(a, self.0[0]), masses(b, self.0[1])]
    }
}

/// `p * ln(p / q)`, from the peaks and masses of both rows.
struct Divergence {
    peaks: [f64; 2],
    masses: [f64; 2],
}

impl<R: Real> Terms<R, 2, 1> for Divergence {
    type Stretch = ();

    fn reads(&self) -> [usize; 2] {
        [0, 1]
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, (): &(), _: At, [a, b]: [[R; N]; 2]) -> [[f64; N]; 1] {
        let (mut q, mut p) = (masses(a, self.peaks[0]), masses(b, self.peaks[1]));
        let mut ratio = p;
        for j in 0..N {
            q[j] = q[j] / self.masses[0] + 1e-8;
            p[j] = p[j] / self.masses[1] + 1e-8;
            ratio[j] = p[j] / q[j];
        }
        let logarithm = ln(ratio);
        for j in 0..N {
            p[j] *= logarithm[j];
        }
        [p]
    }
}
