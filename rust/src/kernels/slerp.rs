//! Spherical linear interpolation of two tensors taken as vectors (Shoemake, 1985): a sweep for the angle, then a
//! weighted sum.
use super::{BLOCK, Sum};
use crate::dtype::Format;
use crate::real::Real;
use crate::simd::{PIECE, Simd, Task, prefetch};

/// `a.b`, `a.a` and `b.b` of one block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Products([Sum; 3]);

/// Adds a run of a block to its products.
struct Add<'a, F> {
    products: &'a mut Products,
    a: &'a [u8],
    b: &'a [u8],
    format: std::marker::PhantomData<F>,
}

impl<F: Format> Task for Add<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let mut sums = *self.products;
        let sixteen = 16 * F::BYTES;
        let whole = self.a.len() / sixteen * sixteen;
        for (i, (a, b)) in self.a[..whole].chunks_exact(sixteen).zip(self.b[..whole].chunks_exact(sixteen)).enumerate()
        {
            if (i * sixteen).is_multiple_of(PIECE) {
                prefetch(self.a, i * sixteen);
                prefetch(self.b, i * sixteen);
            }
            let (a, b) = (F::get16(a).map(F::Real::to_f64), F::get16(b).map(F::Real::to_f64));
            sums.0[0].add16(std::array::from_fn(|i| a[i] * b[i]));
            sums.0[1].add16(a.map(|a| a * a));
            sums.0[2].add16(b.map(|b| b * b));
        }
        let (a, b) = (&self.a[whole..], &self.b[whole..]);
        for i in 0..a.len() / F::BYTES {
            let (a, b) = (F::get(a, i).to_f64(), F::get(b, i).to_f64());
            sums.0[0].add_one(i, a * b);
            sums.0[1].add_one(i, a * a);
            sums.0[2].add_one(i, b * b);
        }
        *self.products = sums;
    }
}

impl Products {
    /// Adds a run of at most one block; see [`Sum`] for its length.
    pub fn add<F: Format>(&mut self, simd: Simd, a: &[u8], b: &[u8]) {
        debug_assert!(a.len() <= BLOCK * F::BYTES);
        simd.run(Add::<F> { products: self, a, b, format: std::marker::PhantomData });
    }

    /// The three sums of the block.
    pub fn totals(&self) -> [f64; 3] {
        self.0.map(|sum| sum.total())
    }
}

/// The weights of `a` and `b` at `t`, from the blocks' totals in order. Vectors that are parallel or opposite within
/// |cos| > 0.9995 are interpolated linearly, and a norm below 1e-8 counts as 1, both as mergekit does.
pub fn weights(blocks: impl IntoIterator<Item = [f64; 3]>, t: f64) -> [f64; 2] {
    let mut total = [0.0; 3];
    for block in blocks {
        for (total, x) in total.iter_mut().zip(block) {
            *total += x;
        }
    }
    let norm = |square: f64| if square.sqrt() <= 1e-8 { 1.0 } else { square.sqrt() };
    let cosine = (total[0] / norm(total[1]) / norm(total[2])).clamp(-1.0, 1.0);
    if cosine.abs() > 0.9995 {
        return [1.0 - t, t];
    }
    let angle = libm::acos(cosine);
    [libm::sin((1.0 - t) * angle) / libm::sin(angle), libm::sin(t * angle) / libm::sin(angle)]
}
