//! Task vectors as they are ranked.
use super::rounding::Round;
use crate::real::Real;
use crate::sweep::select::Score;
use std::marker::PhantomData;

/// |x - base| of one model, rounded to the dtype.
pub struct Difference<D>(pub usize, pub PhantomData<D>);

impl<R: Real, D: Round> Score<R, 2> for Difference<D> {
    fn reads(&self) -> [usize; 2] {
        [0, self.0 + 1]
    }

    #[inline(always)]
    fn keys<const N: usize>(&self, [base, x]: [[R; N]; 2]) -> [R::Key; N] {
        let mut keys = [R::Key::default(); N];
        for j in 0..N {
            keys[j] = D::round(x[j] - base[j]).key();
        }
        keys
    }
}
