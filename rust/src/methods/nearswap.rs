//! Nearswap (alchemonaut, 2024): each element moves by `t` towards the other model, and at most to its value, so elements
//! that are near to each other are swapped.
use super::{Checked, Merge, expect, not_negative};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;

/// The first source, moved towards the second.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nearswap {
    /// Maximum distance that an element moves.
    pub t: f64,
}

/// Smallest divisor of the step.
const NEAREST: f64 = 1e-6;

/// Moves elements by a distance; a difference or element that is NaN gives NaN.
struct Step<R>(R);

impl<R: Real> Combine<R> for Step<R> {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (a, b) = (x[0], x[1]);
        let least = R::from_f64(NEAREST);
        let mut y = a;
        for j in 0..N {
            let gap = (b[j] - a[j]).magnitude();
            let near = gap < least;
            let share = self.0 / (gap.keep_if(!near) + least.keep_if(near));
            let beyond = share > R::ONE;
            let share = share.keep_if(!beyond) + R::ONE.keep_if(beyond);
            y[j] = share * b[j] + (R::ONE - share) * a[j];
        }
        (y, y)
    }
}

impl Merge for Nearswap {
    const SWEEPS: u64 = 1;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        expect(sources, 2).and(not_negative("t", self.t))
    }

    fn prepare<F: Lanes>(&self, _: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        Ok(Box::new(Each(Step(F::Real::from_f64(self.t)))))
    }
}
