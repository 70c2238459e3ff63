//! Dot products of models, or of their task vectors: what angles are made of.
use super::{Sweep, Terms};
use crate::error::Result;
use crate::lanes::{At, Lanes};
use crate::real::Real;

/// `a.b`, `a.a` and `b.b` of two sources.
struct Products(usize, usize);

impl<R: Real> Terms<R, 2, 3> for Products {
    type Stretch = ();

    fn reads(&self) -> [usize; 2] {
        [self.0, self.1]
    }

    fn stretch(&self, _: usize) -> ((), usize) {
        ((), usize::MAX)
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, (): &(), _: At, [a, b]: [[R; N]; 2]) -> [[f64; N]; 3] {
        let (a, b) = (a.map(R::to_f64), b.map(R::to_f64));
        let mut terms = [[0.0; N]; 3];
        for j in 0..N {
            terms[0][j] = a[j] * b[j];
            terms[1][j] = a[j] * a[j];
            terms[2][j] = b[j] * b[j];
        }
        terms
    }
}

impl<F: Lanes> Sweep<'_, F> {
    /// `a.b`, `a.a` and `b.b` of the first two sources.
    pub fn products(&self) -> Result<[f64; 3]> {
        Ok(self.sums(&[Products(0, 1)])?[0])
    }
}
