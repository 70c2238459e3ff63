//! Elements by a formula in f32, one after the other.
use super::rounding::single;
use crate::lanes::{At, Combine};
use crate::methods::delta::see;
use crate::real::Real;

/// Computes an element of the result from those of all sources.
pub trait Formula: Send + Sync {
    /// `x` has one number per source.
    fn element(&self, index: usize, x: &[f32]) -> f32;
}

/// A method that computes so.
pub struct Pointwise<T>(pub T);

impl<R: Real, T: Formula> Combine<R> for Pointwise<T> {
    type Stretch = ();

    #[inline(always)]
    fn lanes<const N: usize>(&self, (): &(), at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let (mut element, mut y) = (vec![0.0; x.len()], x[0]);
        for j in 0..N {
            element.iter_mut().zip(x.iter()).for_each(|(element, x)| *element = x[j].to_f32());
            y[j] = single(self.0.element(at.first + j * at.step, &element).into());
        }
        let mut witness = y;
        for x in x.iter() {
            see(&mut witness, x);
        }
        (y, witness)
    }
}
