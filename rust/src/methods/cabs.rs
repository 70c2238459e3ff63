//! CABS, conflict-aware and balanced sparsification (Yang et al., 2025): of every `m` neighbours in a row the `n` largest of
//! a task vector survive, and what one model keeps is not left to those after it; then as task arithmetic. Where mol
//! differs from the paper: blocks do not cross rows of the last axis, and zeros never survive, so a model that leaves a
//! block as it is takes nothing from the others.
use super::della::Marked;
use super::delta::Total;
use super::ranked::Magnitude;
use super::{Checked, Merge, finite, weighs};
use crate::error::Result;
use crate::lanes::{At, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::ranks::{Bits, held};
use crate::sweep::{Sweep, Terms};

/// Base (the first source) plus weighted task vectors of which `n` of `m` elements survive, of no two models the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cabs {
    /// One per model, base excluded, in the order in which they choose.
    pub weights: Vec<f64>,
    /// Elements of a block that survive of a model.
    pub n: u32,
    /// Elements of a block; the last one of a row may have fewer.
    pub m: u32,
    /// Factor on the sum.
    pub lambda: f64,
}

/// How many elements a model changes.
struct Changes(usize);

impl<R: Real> Terms<R, 2, 1> for Changes {
    type Stretch = ();

    fn reads(&self) -> [usize; 2] {
        [0, self.0 + 1]
    }

    fn stretch(&self, _: usize) -> ((), usize) {
        ((), usize::MAX)
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, (): &(), _: At, [base, x]: [[R; N]; 2]) -> [[f64; N]; 1] {
        [std::array::from_fn(|j| f64::from(u8::from(x[j] - base[j] != R::default())))]
    }
}

impl Cabs {
    /// Finds what survives of a model, apart from what those before it have kept.
    fn chosen<F: Lanes>(&self, sweep: &Sweep<F>, model: usize, before: &[Option<Bits>]) -> Result<Bits> {
        let changes = sweep.each_row(|row| Ok(sweep.sums_of_row(&[Changes(model)], row)?[0][0] as usize))?;
        let (n, m) = (self.n as usize, self.m as usize);
        let mark = |first: usize, order: &[u32], survives: &mut [bool]| {
            let mut kept = vec![0; sweep.columns.div_ceil(m)];
            survives.fill(false);
            for column in order[..changes[first / sweep.columns]].iter().map(|column| *column as usize) {
                let at = At { first: first + column, step: 1 };
                let taken = before.iter().flatten().any(|bits| bits.lanes::<1>(at)[0]);
                survives[column] = !taken && kept[column / m] < n;
                kept[column / m] += usize::from(survives[column]);
            }
        };
        sweep.by_rank(&Magnitude(model), mark)
    }
}

impl Merge for Cabs {
    const SWEEPS: u64 = 3;
    // Magnitudes are ranked as f32, as those of TIES.
    const WIDE: bool = false;

    fn check(&self, sources: usize) -> Checked<(), String> {
        weighs(&self.weights, 1, sources)?;
        if self.n > self.m || self.m == 0 {
            return Err(format!("{} of {} elements cannot survive", self.n, self.m));
        }
        finite("lambda", &[self.lambda])
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        let bits = sources.saturating_sub(1).saturating_mul(Bits::bytes(rows.saturating_mul(columns)));
        let of_rows =
            rows.saturating_mul(size_of::<usize>()).saturating_add(columns.saturating_mul(size_of::<usize>()));
        bits.saturating_add(held(columns)).saturating_add(of_rows)
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let mut bits = Vec::with_capacity(self.weights.len());
        for model in 0..self.weights.len() {
            bits.push(Some(self.chosen(sweep, model, &bits)?));
        }
        Ok(Total::new(Marked(bits), &self.weights, &self.weights, false, self.lambda).kernel())
    }
}
