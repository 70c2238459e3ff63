//! Which elements of a task vector survive by the rank of their magnitudes in the tensor; of equal ones the lowest index
//! counts as the largest.
use super::delta::Keep;
use crate::error::Result;
use crate::lanes::{At, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;
use crate::sweep::select::{COLLECT, Score, Threshold};

/// Returns the bytes that this many searches of a tensor hold at most.
pub fn held(searches: usize, rows: usize, columns: usize) -> usize {
    searches * COLLECT.min(rows.saturating_mul(columns)) * size_of::<i64>()
}

/// |x - base| of one model.
pub struct Magnitude(pub usize);

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
pub struct Largest(pub Vec<Threshold>);

impl Largest {
    /// Finds the thresholds of the largest elements of each task vector, at least one where a density is not zero.
    pub fn of_densities<F: Lanes>(sweep: &Sweep<F>, densities: &[f64]) -> Result<Self> {
        Self::by(sweep, densities, Magnitude)
    }

    /// The same by the magnitudes that `score` gives the elements of each model.
    pub fn by<F: Lanes, S: Score<F::Real, 2>>(
        sweep: &Sweep<F>,
        densities: &[f64],
        score: impl Fn(usize) -> S,
    ) -> Result<Self> {
        let count = |density: f64| match density {
            d if d >= 1.0 => sweep.len(),
            d if d <= 0.0 => 0,
            d => ((d * sweep.len() as f64) as usize).max(1),
        };
        let wanted = densities.iter().enumerate().map(|(model, density)| (score(model), vec![count(*density)]));
        Ok(Self(sweep.select(&wanted.collect::<Vec<_>>())?))
    }
}

impl<R: Real> Keep<R> for Largest {
    type Stretch = Vec<R::Key>;
    const HIDES: bool = false;
    const UNROLLED: bool = true;

    // A stretch ends where the equal magnitudes of a model stop surviving: then one compare decides for each element.
    fn stretch(&self, from: usize) -> (Vec<R::Key>, usize) {
        let (keys, ends): (_, Vec<usize>) = self.0.iter().map(|threshold| threshold.above::<R>(from)).unzip();
        (keys, ends.into_iter().min().unwrap_or(usize::MAX))
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

/// Those among the `outer` largest that are not among the `inner` largest survive, with two thresholds per model.
pub struct Band {
    /// What survives at all.
    pub outer: Largest,
    /// What of that is cut off.
    pub inner: Largest,
}

impl Band {
    /// Finds the thresholds of a fraction of each task vector after a fraction of the largest was cut off, by the magnitudes
    /// that `score` gives the elements of each model.
    pub fn by<F: Lanes, S: Score<F::Real, 2>>(
        sweep: &Sweep<F>,
        densities: &[f64],
        gammas: &[f64],
        score: impl Fn(usize) -> S,
    ) -> Result<Self> {
        let len = sweep.len();
        let part = |share: f64| (share * len as f64) as usize;
        let mut wanted = Vec::with_capacity(densities.len());
        for (model, (density, gamma)) in densities.iter().zip(gammas).enumerate() {
            let kept = if *density < 1.0 { part(*density) } else { len };
            let cut = part(*gamma).min(len - kept);
            wanted.push((score(model), vec![if kept == 0 { 0 } else { kept + cut }, cut]));
        }
        let found = sweep.select(&wanted)?;
        let every_second = |first: usize| Largest(found.iter().copied().skip(first).step_by(2).collect());
        Ok(Self { outer: every_second(0), inner: every_second(1) })
    }
}

impl<R: Real> Keep<R> for Band {
    type Stretch = [Vec<R::Key>; 2];
    const UNROLLED: bool = true;

    fn stretch(&self, from: usize) -> ([Vec<R::Key>; 2], usize) {
        let ((outer, a), (inner, b)) = (Keep::<R>::stretch(&self.outer, from), Keep::<R>::stretch(&self.inner, from));
        ([outer, inner], a.min(b))
    }

    #[inline(always)]
    fn apply<const N: usize>(
        &self,
        [outer, inner]: &[Vec<R::Key>; 2],
        _: At,
        model: usize,
        d: [R; N],
        mut v: [R; N],
    ) -> [R; N] {
        let (low, high) = (outer[model], inner[model]);
        for j in 0..N {
            v[j] = v[j].keep_if((d[j].key() > low) & (d[j].key() <= high));
        }
        v
    }
}
