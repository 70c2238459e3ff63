//! TIES: trim, elect sign, disjoint mean (Yadav et al., 2023). Where mol, like mergekit, differs from the paper:
//! trimming is per tensor, and the weighted task vectors vote and are averaged by weight.
use super::delta::{Elect, Keep, factors};
use super::{Checked, Merge, finite, shares, weighs};
use crate::error::Result;
use crate::lanes::{At, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;
use crate::sweep::select::{COLLECT, Score, Threshold};

/// How the sign of an element is elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sign of the sum of the weighted deltas; plus if they cancel.
    Total,
    /// The sign of the majority of the weighted deltas; plus in a draw.
    Count,
}

/// Trim, elect sign, disjoint mean over the base (the first source).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ties {
    /// One per model, base excluded.
    pub weights: Vec<f64>,
    /// Fraction of elements kept, one per model.
    pub densities: Vec<f64>,
    /// Divide by the sum of the agreeing weights.
    pub normalize: bool,
    /// Rescale survivors so that each task vector keeps its L1 norm.
    pub rescale: bool,
    /// Factor on the mean.
    pub lambda: f64,
    /// How signs are elected.
    pub majority_sign_method: MajoritySign,
}

/// |x - base| of one model.
struct Magnitude(usize);

impl<R: Real> Score<R, 2> for Magnitude {
    fn reads(&self) -> [usize; 2] {
        [0, self.0 + 1]
    }

    #[inline(always)]
    fn keys<const N: usize>(&self, [base, x]: [[R; N]; 2]) -> [R::Key; N] {
        let mut keys = [R::Key::default(); N];
        for j in 0..N {
            keys[j] = (x[j] - base[j]).key();
        }
        keys
    }
}

/// The largest magnitudes survive, with one threshold per model.
struct Largest(Vec<Threshold>);

impl<R: Real> Keep<R> for Largest {
    type Stretch = Vec<R::Key>;
    const UNROLLED: bool = true;

    // A stretch ends where elements equal to a model's threshold stop surviving, so one comparison decides for each
    // element.
    fn stretch(&self, from: usize) -> (Vec<R::Key>, usize) {
        let keys = self.0.iter().map(|t| R::narrow_key(t.key - i64::from(from < t.cut))).collect();
        (keys, self.0.iter().map(|t| t.cut).filter(|cut| *cut > from).min().unwrap_or(usize::MAX))
    }

    #[inline(always)]
    fn apply<const N: usize>(&self, keys: &Vec<R::Key>, _: At, model: usize, d: [R; N], mut v: [R; N]) -> [R; N] {
        let key = keys[model];
        for j in 0..N {
            v[j] = v[j].keep_if(d[j].key() > key);
        }
        v
    }
}

impl Merge for Ties {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;
    // Magnitudes are ranked as f32, so that a density means the same for every output dtype.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        shares(&self.densities, sources).and(finite("lambda", &[self.lambda]))
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        sources * COLLECT.min(rows.saturating_mul(columns)) * size_of::<i64>()
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let count = |density: f64| match density {
            d if d >= 1.0 => sweep.len(),
            d if d <= 0.0 => 0,
            d => ((d * sweep.len() as f64) as usize).max(1),
        };
        let wanted = self.densities.iter().enumerate().map(|(model, density)| (Magnitude(model), count(*density)));
        let keep = Largest(sweep.select(&wanted.collect::<Vec<_>>())?);
        let Self { ref weights, normalize, rescale, lambda, .. } = *self;
        let factors = factors(sweep, &keep, weights, rescale)?;
        Ok(match self.majority_sign_method {
            MajoritySign::Total => Elect::<_, _, false>::new(keep, weights, &factors, normalize, lambda).kernel(),
            MajoritySign::Count => Elect::<_, _, true>::new(keep, weights, &factors, normalize, lambda).kernel(),
        })
    }
}
