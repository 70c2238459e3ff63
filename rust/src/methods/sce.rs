//! SCE (Wan et al., 2024): the elements of which the models differ most are selected, models weigh by the squares of their
//! task vectors, and those that oppose the elected sign are erased. Where mol, like mergekit, differs from the paper:
//! everything is per tensor, weights are even where the mean squares sum to less than 1e-6, and those of an element are
//! divided by what is left of them.
use super::delta::{see, settled};
use super::ranked::held;
use super::{Checked, Merge, based};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::select::{Made, Score, Threshold};
use crate::sweep::{Sweep, Terms};

/// Select, calculate, erase: over the base (the first source).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sce {
    /// Share of the elements on which models differ that are selected.
    pub select_topk: f64,
}

/// The variance of the task vectors.
#[inline(always)]
fn variance<R: Real, const N: usize>(x: &[[R; N]]) -> [R; N] {
    let (count, zero) = (R::from_f64((x.len() - 1) as f64), [R::default(); N]);
    let (mut mean, mut sum) = (zero, zero);
    for k in 1..x.len() {
        for j in 0..N {
            mean[j] = mean[j] + (x[k][j] - x[0][j]);
        }
    }
    for j in 0..N {
        mean[j] = mean[j] / count;
    }
    for k in 1..x.len() {
        for j in 0..N {
            let d = (x[k][j] - x[0][j]) - mean[j];
            sum[j] = sum[j] + d * d;
        }
    }
    for j in 0..N {
        sum[j] = sum[j] / count;
    }
    sum
}

/// The variance of the task vectors of `M - 1` models, as a score.
struct Varying<const M: usize>;

impl<R: Real, const M: usize> Score<R, M> for Varying<M> {
    fn reads(&self) -> [usize; M] {
        std::array::from_fn(|k| k)
    }

    #[inline(always)]
    fn keys<const N: usize>(&self, x: [[R; N]; M]) -> [R::Key; N] {
        variance(&x).map(R::key)
    }
}

/// The variance, as what a sweep makes of any number of models.
struct Variance;

impl<R: Real> Combine<R> for Variance {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let v = variance(x);
        (v, v)
    }
}

/// The squares of the elements of `K` task vectors that are selected by their variance; `M` is `K + 1`.
struct Selected<const M: usize, const K: usize>(Threshold);

impl<R: Real, const M: usize, const K: usize> Terms<R, M, K> for Selected<M, K> {
    type Stretch = R::Key;

    fn reads(&self) -> [usize; M] {
        std::array::from_fn(|k| k)
    }

    fn stretch(&self, from: usize) -> (R::Key, usize) {
        self.0.above::<R>(from)
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, key: &R::Key, _: At, x: [[R; N]; M]) -> [[f64; N]; K] {
        let (v, mut squares) = (variance(&x), [[0.0; N]; K]);
        for k in 0..K {
            for j in 0..N {
                let d = (x[k + 1][j] - x[0][j]).keep_if(v[j].key() > *key).to_f64();
                squares[k][j] = d * d;
            }
        }
        squares
    }
}

/// The squares of the selected elements of a task vector; `M` is 3 where there is a selection, by the variance, else 2.
struct Squares<const M: usize> {
    model: usize,
    made: usize,
    selected: Threshold,
}

impl<R: Real, const M: usize> Terms<R, M, 1> for Squares<M> {
    type Stretch = R::Key;

    fn reads(&self) -> [usize; M] {
        let all = [0, self.model + 1, self.made];
        std::array::from_fn(|k| all[k])
    }

    fn stretch(&self, from: usize) -> (R::Key, usize) {
        self.selected.above::<R>(from)
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, key: &R::Key, _: At, x: [[R; N]; M]) -> [[f64; N]; 1] {
        let mut squares = [0.0; N];
        for j in 0..N {
            let d = x[1][j] - x[0][j];
            let d = if M == 3 { d.keep_if(x[2][j].key() > *key) } else { d }.to_f64();
            squares[j] = d * d;
        }
        [squares]
    }
}

/// `base + sign * sum(share_k d_k) / sum(share_k)` over those that agree.
struct Erased<R, const SELECT: bool> {
    shares: Vec<R>,
    selected: Threshold,
}

impl<R: Real, const SELECT: bool> Combine<R> for Erased<R, SELECT> {
    type Stretch = R::Key;
    const UNROLLED: bool = true;
    const BY_LANE: bool = true;

    fn stretch(&self, from: usize) -> (R::Key, usize) {
        self.selected.above::<R>(from)
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, key: &R::Key, _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (shares, zero) = (&self.shares[..x.len() - 1], [R::default(); N]);
        let v = if SELECT { variance(x) } else { zero };
        let (mut sum, mut mass, mut witness) = (zero, zero, x[0]);
        for k in 1..x.len() {
            see(&mut witness, &x[k]);
            for j in 0..N {
                let d = x[k][j] - x[0][j];
                x[k][j] = if SELECT { d.keep_if(v[j].key() > *key) } else { d };
                sum[j] = sum[j] + x[k][j];
                mass[j] = mass[j] + x[k][j].magnitude();
            }
        }
        let mut votes = sum;
        for j in 0..N {
            votes[j] = settled(sum[j], mass[j]);
            witness[j] = witness[j] + sum[j];
        }
        let (mut agreeing, mut divisor) = (zero, zero);
        for k in 1..x.len() {
            for j in 0..N {
                let flipped = x[k][j].flip_by(votes[j]);
                let agrees = flipped > R::default();
                agreeing[j] = agreeing[j] + (flipped * shares[k - 1]).keep_if(agrees);
                divisor[j] = divisor[j] + shares[k - 1].keep_if(agrees);
            }
        }
        let (mut y, least) = (x[0], R::from_f64(1e-6));
        for j in 0..N {
            let divisor = if divisor[j] > least { divisor[j] } else { least };
            y[j] = y[j] + (agreeing[j] / divisor).flip_by(votes[j]);
        }
        (y, witness)
    }
}

impl Merge for Sce {
    const SWEEPS: u64 = 3;
    const DIRECT: bool = true;
    // Variances are ranked as f32, so that the same elements are selected whatever the dtype of the result.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        based(sources)?;
        if (0.0..=1.0).contains(&self.select_topk) {
            Ok(())
        } else {
            Err(format!("select_topk {} is outside [0, 1]", self.select_topk))
        }
    }

    fn resident(&self, rows: usize, columns: usize, _: usize) -> usize {
        held(1, rows, columns)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let (made, models) = (sweep.sources().len(), sweep.sources().len() - 1);
        if self.select_topk >= 1.0 {
            let selected = Threshold::ALL;
            let squares: Vec<_> = (0..models).map(|model| Squares::<2> { model, made, selected }).collect();
            let shares = shares(sweep.sums(&squares)?.as_flattened(), sweep.len());
            return Ok(Box::new(Each(Erased::<_, false> { shares, selected })));
        }
        // Up to four models stay in registers; the variance of more of them is made strip by strip.
        let (selected, squares) = match models {
            2 => self.selected::<F, 3, 2>(sweep)?,
            3 => self.selected::<F, 4, 3>(sweep)?,
            4 => self.selected::<F, 5, 4>(sweep)?,
            _ => {
                let kernel = Each(Variance);
                let plain = Sweep::<F::Plain>::new(sweep.sources(), sweep.settings);
                let plain = plain.with(&kernel);
                let selected = plain.select_part(&Made(made), |not_zero| self.wanted(not_zero))?;
                let squares: Vec<_> = (0..models).map(|model| Squares::<3> { model, made, selected }).collect();
                (selected, plain.sums(&squares)?.into_flattened())
            }
        };
        let shares = shares(&squares, sweep.len());
        Ok(Box::new(Each(Erased::<_, true> { shares, selected })))
    }
}

impl Sce {
    /// Returns how many elements are selected, of as many on which the models differ.
    fn wanted(&self, differing: usize) -> usize {
        (differing as f64 * self.select_topk) as usize
    }

    /// Finds the selected elements, and sums their squares for each of `K` models; `M` is `K + 1`.
    fn selected<F: Lanes, const M: usize, const K: usize>(&self, sweep: &Sweep<F>) -> Result<(Threshold, Vec<f64>)> {
        let selected = sweep.select_part(&Varying::<M>, |not_zero| self.wanted(not_zero))?;
        Ok((selected, sweep.sums(&[Selected::<M, K>(selected)])?.into_flattened()))
    }
}

/// Each model's share of the mean squares of all.
fn shares<R: Real>(squares: &[f64], len: usize) -> Vec<R> {
    let total: f64 = squares.iter().sum();
    let even = 1.0 / squares.len() as f64;
    let share = |square: &f64| if total / (len as f64) < 1e-6 { even } else { square / total };
    squares.iter().map(|square| R::from_f64(share(square))).collect()
}
