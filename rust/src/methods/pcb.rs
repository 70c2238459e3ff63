//! PCB-Merging, parameter competition balancing (Du et al., 2024), as the authors' program computes it: an element of a task
//! vector scores by its own size and by how far it agrees with the sum of all, the best score, and the result is the mean
//! weighted by score. Where mol differs: sizes and scores are ranked in each tensor, not over the whole model, of the
//! magnitudes the 0.01% at either end are clamped, and where all scores are equal those that are positive count alike.
use super::delta::see;
use super::ranked::held;
use super::{Checked, Merge, based, finite, shares};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::math::exp;
use crate::real::Real;
use crate::sweep::select::Made;
use crate::sweep::{STRIP, Sweep};

/// Base (the first source) plus the mean of the task vectors, weighted by how they score.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pcb {
    /// Fraction of elements that score, one per model.
    pub densities: Vec<f64>,
    /// Factor on the mean.
    pub lambda: f64,
}

/// One in so many magnitudes is clamped at either end.
const CLAMPED: usize = 10_000;

/// Bounds of what one model has in a tensor.
#[derive(Clone, Copy, Default)]
struct Bounds {
    low: f64,
    high: f64,
}

impl Bounds {
    /// Maps a number within the bounds to a share of one.
    #[inline(always)]
    fn share(self, x: f64) -> f64 {
        let clamped = x.max(self.low).min(self.high);
        let alike = f64::from(u8::from(x > 0.0 && x >= self.low));
        if self.high > self.low { (clamped - self.low) / (self.high - self.low) } else { alike }
    }
}

/// Computes tanh: the series near zero, where the quotient would cancel.
#[inline(always)]
fn tanh(x: f64) -> f64 {
    const SERIES: [f64; 8] = [
        -929_569.0 / 638_512_875.0,
        21_844.0 / 6_081_075.0,
        -1_382.0 / 155_925.0,
        62.0 / 2_835.0,
        -17.0 / 315.0,
        2.0 / 15.0,
        -1.0 / 3.0,
        1.0,
    ];
    let square = x * x;
    let series = SERIES[1..].iter().fold(SERIES[0], |sum, coefficient| sum * square + coefficient) * x;
    let [power] = exp([-2.0 * x.abs()]);
    let quotient = ((1.0 - power) / (1.0 + power)).copysign(x);
    if x.abs() < 0.1 { series } else { quotient }
}

/// Scores `exp(models * size^2) * tanh(d * sum(d))`, for the size of `|d|` within its bounds.
struct Scores(Vec<Bounds>);

impl Scores {
    /// Scores one model, rounded to the working precision, as a search ranks it; `x` holds the task vectors after the base.
    #[inline(always)]
    fn of<R: Real, const N: usize>(&self, model: usize, x: &[[R; N]]) -> [R; N] {
        let mut scores = x[model + 1];
        for j in 0..N {
            let sum: f64 = x[1..].iter().map(|d| d[j].to_f64()).sum();
            let d = x[model + 1][j].to_f64();
            let bounds = self.0[model];
            let size = if bounds.high > bounds.low { bounds.share(d.abs()) } else { 0.0 };
            let [own] = exp([(x.len() - 1) as f64 * (size * size)]);
            scores[j] = R::from_f64(own * tanh(d * sum));
        }
        scores
    }
}

/// Replaces models by their task vectors.
#[inline(always)]
fn subtract<R: Real, const N: usize>(x: &mut [[R; N]]) {
    for k in 1..x.len() {
        for j in 0..N {
            x[k][j] = x[k][j] - x[0][j];
        }
    }
}

/// What a sweep makes: the magnitudes of a model, or one side of its scores.
#[derive(Clone, Copy)]
enum Seen<'a> {
    Magnitude(usize),
    Positive(&'a Scores, usize),
    Negative(&'a Scores, usize),
    Score(&'a Scores, usize),
}

impl<R: Real> Combine<R> for Seen<'_> {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        subtract(x);
        let y = match *self {
            Self::Magnitude(model) => x[model + 1].map(R::magnitude),
            Self::Score(scores, model) => scores.of(model, x),
            Self::Positive(scores, model) => scores.of(model, x).map(|score| score.keep_if(score > R::default())),
            Self::Negative(scores, model) => scores.of(model, x).map(|score| score.keep_if(score < R::default())),
        };
        (y, y)
    }
}

/// `base + lambda * sum(share_k d_k) / sum(share_k)`.
struct Balanced<R> {
    scores: Scores,
    /// Which scores count, one per model.
    counted: Vec<Bounds>,
    lambda: R,
}

impl<R: Real> Combine<R> for Balanced<R> {
    type Stretch = ();

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let mut witness = x[0];
        for x in &*x {
            see(&mut witness, x);
        }
        subtract(x);
        let (mut sum, mut divisor) = ([0.0; N], [0.0; N]);
        for model in 0..x.len() - 1 {
            let scores = self.scores.of(model, x);
            for j in 0..N {
                let share = self.counted[model].share(scores[j].to_f64());
                let (d, size) = (x[model + 1][j].to_f64(), self.scores.0[model]);
                sum[j] += share * d.abs().max(size.low).min(size.high).copysign(d) * f64::from(u8::from(d != 0.0));
                divisor[j] += share;
            }
        }
        let mut y = x[0];
        for j in 0..N {
            y[j] = y[j] + R::from_f64(sum[j] / divisor[j].max(1e-12)) * self.lambda;
        }
        (y, witness)
    }
}

/// Finds the least and the largest number that a kernel makes.
fn extremes<F: Lanes>(sweep: &Sweep<F>, seen: Seen) -> Result<Bounds> {
    let kernel = Each(seen);
    let made = sweep.sources().len();
    let sweep = sweep.with(&kernel);
    let none = Bounds { low: f64::INFINITY, high: f64::NEG_INFINITY };
    let join = |a: Bounds, b: Bounds| Bounds { low: a.low.min(b.low), high: a.high.max(b.high) };
    let tiles = sweep.tiles(|tile| {
        let mut found = none;
        sweep.strips(&[made], tile, STRIP, |strip, x| {
            for i in 0..strip.len() {
                let y = F::get(x[0], i).to_f64();
                found = join(found, Bounds { low: y, high: y });
            }
            Ok(())
        })?;
        Ok(found)
    })?;
    Ok(tiles.into_iter().fold(none, join))
}

/// Finds the magnitudes of the numbers of some ranks, the largest first, that a kernel makes; there are more.
fn ranked<F: Lanes, const K: usize>(sweep: &Sweep<F>, seen: Seen, ranks: [usize; K]) -> Result<[f64; K]> {
    let kernel = Each(seen);
    let made = sweep.sources().len();
    let found = sweep.with(&kernel).select(&[(Made(made), ranks.to_vec())])?;
    Ok(std::array::from_fn(|k| F::Real::from_key(F::Real::narrow_key(found[k].key)).to_f64()))
}

impl Pcb {
    /// Finds the bounds of the magnitudes of a model.
    fn sizes<F: Lanes>(sweep: &Sweep<F>, model: usize) -> Result<Bounds> {
        let (seen, cut) = (Seen::Magnitude(model), sweep.len() / CLAMPED);
        if cut == 0 {
            return extremes(sweep, seen);
        }
        let [low, high] = ranked(sweep, seen, [sweep.len() - cut, cut + 1])?;
        Ok(Bounds { low, high })
    }

    /// Finds the bounds of the scores of a model that count.
    fn counted<F: Lanes>(&self, sweep: &Sweep<F>, scores: &Scores, model: usize) -> Result<Bounds> {
        let all = extremes(sweep, Seen::Score(scores, model))?;
        let below = ((1.0 - self.densities[model]) * sweep.len() as f64) as usize;
        if below == 0 {
            return Ok(all);
        }
        if below >= sweep.len() {
            return Ok(Bounds { low: f64::INFINITY, high: f64::INFINITY });
        }
        let [positive] = ranked(sweep, Seen::Positive(scores, model), [sweep.len() - below])?;
        if positive > 0.0 {
            return Ok(Bounds { low: positive, high: all.high });
        }
        let [negative] = ranked(sweep, Seen::Negative(scores, model), [below + 1])?;
        Ok(Bounds { low: -negative, high: all.high })
    }
}

impl Merge for Pcb {
    const SWEEPS: u64 = 6;
    // Magnitudes and scores are ranked as f32, as those of TIES.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        based(sources)?;
        shares(&self.densities, sources).and(finite("lambda", &[self.lambda]))
    }

    fn resident(&self, rows: usize, columns: usize, _: usize) -> usize {
        held(2, rows, columns)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let models = 0..self.densities.len();
        let scores = Scores(models.clone().map(|model| Self::sizes(sweep, model)).collect::<Result<_>>()?);
        let counted = models.map(|model| self.counted(sweep, &scores, model)).collect::<Result<_>>()?;
        Ok(Box::new(Each(Balanced { scores, counted, lambda: F::Real::from_f64(self.lambda) })))
    }
}
