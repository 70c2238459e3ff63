//! Spherical linear interpolation: always in f32, with norms and the dot product of chunks of 2^20 elements.
use super::reductions::{Norm, Reduce, Sum, reduced, reduced_numbers};
use super::rounding::{Round, single};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::methods::slerp::Slerp;
use crate::real::Real;
use crate::sweep::Sweep;
use rayon::prelude::*;
use std::marker::PhantomData;

const CHUNK: usize = 1 << 20;

/// Two products in f32, their sum in f32, rounded to the dtype at the end.
struct Arc<R, D>([R; 2], PhantomData<D>);

/// Returns the kernel of `slerp`.
pub fn slerp<F: Lanes, D: Round>(method: &Slerp, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
    let norms = [0, 1].map(|source| {
        let norm = chunks::<Norm, F, 1>(sweep, [source], |[x]| x)?;
        Ok(if norm <= 1e-8 { 1.0 } else { norm })
    });
    let [a, b] = norms;
    let (a, b) = (a?, b?);
    let cosine = chunks::<Sum, F, 2>(sweep, [0, 1], |[x, y]| (x / a) * (y / b))?.clamp(-1.0, 1.0);
    let t = method.t as f32;
    let weights = if cosine.abs() > 0.9995 {
        [1.0 - t, t]
    } else {
        let angle = libm::acos(cosine.into()) as f32;
        let sine = |x: f32| libm::sin(x.into()) as f32;
        [sine((1.0 - t) * angle) / sine(angle), sine(t * angle) / sine(angle)]
    };
    Ok(Box::new(Each(Arc::<F::Real, D>(weights.map(|w| single(w.into())), PhantomData))))
}

/// Reduces a term of each element chunk by chunk, then what the chunks give.
fn chunks<R: Reduce, F: Lanes, const M: usize>(
    sweep: &Sweep<F>,
    reads: [usize; M],
    term: impl Fn([f32; M]) -> f32 + Sync,
) -> Result<f32> {
    let of_chunk =
        |chunk: usize| reduced::<R, F, M>(sweep, reads, chunk * CHUNK..sweep.len().min((chunk + 1) * CHUNK), &term);
    let found: Vec<f32> = (0..sweep.len().div_ceil(CHUNK)).into_par_iter().map(of_chunk).collect::<Result<_>>()?;
    Ok(if let [one] = found[..] { one } else { reduced_numbers::<R>(&found) })
}

impl<R: Real, D: Round> Combine<R> for Arc<R, D> {
    type Stretch = ();
    const WITNESS: bool = false;

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), _: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let mut y = x[0];
        for j in 0..N {
            y[j] = D::round(self.0[0] * x[0][j] + self.0[1] * x[1][j]);
        }
        (y, y)
    }
}
