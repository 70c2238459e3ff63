//! Spherical linear interpolation of two tensors treated as vectors (Shoemake, 1985): a sweep for the angle, then a
//! weighted sum.
use super::weighted::weighted;
use super::{Checked, Merge, expect, finite};
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;
use crate::sweep::gram::Over;

/// Interpolates from the first source (t = 0) to the second (t = 1).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slerp {
    /// Position between them.
    pub t: f64,
}

impl Merge for Slerp {
    const SWEEPS: u64 = 2;
    const DIRECT: bool = true;

    fn check(&self, sources: usize) -> Checked<(), String> {
        expect(sources, 2).and(finite("t", &[self.t]))
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        // As in mergekit: vectors that are parallel or opposite within this are interpolated linearly.
        Ok(weighted(&arc(sweep.products(Over::Tensor)?[0], self.t, 0.9995), None))
    }
}

/// Computes the weights of `a` and `b` at `t` from `a.b`, `a.a` and `b.b`. If |cos| is above `parallel` they are the
/// weights of linear interpolation; a norm up to 1e-8 is replaced by 1.
pub fn arc([ab, aa, bb]: [f64; 3], t: f64, parallel: f64) -> [f64; 2] {
    let norm = |square: f64| if square.sqrt() <= 1e-8 { 1.0 } else { square.sqrt() };
    let cosine = (ab / norm(aa) / norm(bb)).clamp(-1.0, 1.0);
    if cosine.abs() > parallel {
        return [1.0 - t, t];
    }
    let angle = libm::acos(cosine);
    [libm::sin((1.0 - t) * angle) / libm::sin(angle), libm::sin(t * angle) / libm::sin(angle)]
}
