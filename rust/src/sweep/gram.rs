//! Dot products of models, or of their task vectors: the basis of angles.
use super::{Sweep, TURN, Terms};
use crate::error::Result;
use crate::lanes::{At, Lanes, W};
use crate::real::Real;
use crate::simd::Task;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Columns that are summed side by side.
const PANEL: usize = 1024;

/// Ratio of the length of a sum of vectors to the sum of their lengths below which f64 products cannot distinguish it from zero.
pub const CANCELLED: f64 = 1e-7;

/// What counts as one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// All elements.
    Tensor,
    /// Each row.
    Row,
    /// Each column: the elements with the same last index.
    Column,
}

/// Computes `a.b`, `a.a` and `b.b` of the last two of `M` sources, minus the first if there are three.
struct Products<const M: usize>;

impl<R: Real, const M: usize> Terms<R, M, 3> for Products<M> {
    type Stretch = ();

    fn reads(&self) -> [usize; M] {
        std::array::from_fn(|source| source)
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, (): &(), _: At, x: [[R; N]; M]) -> [[f64; N]; 3] {
        let (mut a, mut b) = (x[M - 2], x[M - 1]);
        if M == 3 {
            for j in 0..N {
                a[j] = a[j] - x[0][j];
                b[j] = b[j] - x[0][j];
            }
        }
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

/// `a.b` of two sources, or of the last two of three minus the first.
struct Pair<const M: usize>([usize; M]);

impl<R: Real, const M: usize> Terms<R, M, 1> for Pair<M> {
    type Stretch = ();

    fn reads(&self) -> [usize; M] {
        self.0
    }

    #[inline(always)]
    fn terms<const N: usize>(&self, (): &(), at: At, x: [[R; N]; M]) -> [[f64; N]; 1] {
        let [product, ..] = Terms::<R, M, 3>::terms(&Products::<M>, &(), at, x);
        [product]
    }
}

/// The dot products of all pairs of vectors. A vector in their span is given by its coefficients.
pub struct Gram {
    products: Vec<f64>,
    vectors: usize,
}

impl Gram {
    /// Moves the sums of pairs to their positions.
    fn of(vectors: usize, pairs: &[[usize; 2]], sums: &[[f64; 1]]) -> Self {
        let mut products = vec![0.0; vectors * vectors];
        for ([a, b], [sum]) in pairs.iter().zip(sums) {
            products[a * vectors + b] = *sum;
            products[b * vectors + a] = *sum;
        }
        Self { products, vectors }
    }

    /// Returns the number of vectors.
    pub fn len(&self) -> usize {
        self.vectors
    }

    /// Returns whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.vectors == 0
    }

    /// Returns the dot product of vectors `a` and `b`.
    pub fn product(&self, a: usize, b: usize) -> f64 {
        self.products[a * self.vectors + b]
    }

    /// Returns the length of a vector.
    pub fn norm(&self, a: usize) -> f64 {
        self.product(a, a).sqrt()
    }

    /// Returns the dot product of vector `a` and the sum of all vectors times their coefficients.
    pub fn along(&self, a: usize, coefficients: &[f64]) -> f64 {
        coefficients.iter().enumerate().map(|(b, coefficient)| coefficient * self.product(a, b)).sum()
    }

    /// Returns the length of the sum of all vectors times their coefficients; see [`CANCELLED`].
    pub fn length(&self, coefficients: &[f64]) -> f64 {
        let square: f64 = coefficients.iter().enumerate().map(|(a, c)| c * self.along(a, coefficients)).sum();
        square.max(0.0).sqrt()
    }

    /// Returns the products of the same vectors, each times its factor.
    #[must_use]
    pub fn scaled(&self, factors: &[f64]) -> Self {
        let of_row = |a: usize| (0..self.vectors).map(move |b| factors[a] * factors[b] * self.product(a, b));
        Self { products: (0..self.vectors).flat_map(of_row).collect(), vectors: self.vectors }
    }
}

impl<F: Lanes> Sweep<'_, F> {
    /// Computes the products of all sources, or with `based` of the other sources minus the first.
    pub fn gram(&self, based: bool) -> Result<Gram> {
        let vectors = self.sources.len() - usize::from(based);
        let pairs: Vec<[usize; 2]> = (0..vectors).flat_map(|a| (a..vectors).map(move |b| [a, b])).collect();
        let sums = if based {
            self.sums(&pairs.iter().map(|[a, b]| Pair([0, a + 1, b + 1])).collect::<Vec<_>>())?
        } else {
            self.sums(&pairs.iter().map(|pair| Pair(*pair)).collect::<Vec<_>>())?
        };
        Ok(Gram::of(vectors, &pairs, &sums))
    }

    /// Computes the products of the rows of the other sources minus the first, and calls `visit` for each row.
    pub fn grams_of_rows<O: Send>(&self, visit: impl Fn(Gram) -> O + Sync) -> Result<Vec<O>> {
        let vectors = self.sources.len() - 1;
        let pairs: Vec<[usize; 2]> = (0..vectors).flat_map(|a| (a..vectors).map(move |b| [a, b])).collect();
        let terms: Vec<_> = pairs.iter().map(|[a, b]| Pair([0, a + 1, b + 1])).collect();
        self.of_rows(&terms, |sums| visit(Gram::of(vectors, &pairs, sums)))
    }

    /// Computes `a.b`, `a.a` and `b.b` of two sources, or of the last two of three minus the first, for each vector.
    pub fn products(&self, over: Over) -> Result<Vec<[f64; 3]>> {
        if self.sources.len() == 3 { self.over(over, &Products::<3>) } else { self.over(over, &Products::<2>) }
    }

    fn over<T: Terms<F::Real, M, K>, const M: usize, const K: usize>(
        &self,
        over: Over,
        terms: &T,
    ) -> Result<Vec<[f64; K]>> {
        match over {
            Over::Tensor => self.sums(std::slice::from_ref(terms)),
            _ if self.is_empty() => Ok(Vec::new()),
            Over::Row => self.of_rows(std::slice::from_ref(terms), |sums| sums[0]),
            Over::Column => self.of_columns(terms),
        }
    }

    fn of_rows<T: Terms<F::Real, M, K>, O: Send, const M: usize, const K: usize>(
        &self,
        terms: &[T],
        visit: impl Fn(&[[f64; K]]) -> O + Sync,
    ) -> Result<Vec<O>> {
        self.each_row(|row| Ok(visit(&self.sums_of_row(terms, row)?)))
    }

    /// Sums panel by panel, each over all rows in order.
    fn of_columns<T: Terms<F::Real, M, K>, const M: usize, const K: usize>(&self, terms: &T) -> Result<Vec<[f64; K]>> {
        let chosen = terms.reads();
        let of_panel = |panel: usize| {
            let columns = panel * PANEL..self.columns.min((panel + 1) * PANEL);
            let mut sums = vec![[0.0; K]; columns.len()];
            for row in 0..self.rows {
                self.settings.watch.check()?;
                let start = row * self.columns;
                self.strips(&chosen, start + columns.start..start + columns.end, TURN, |strip, inputs| {
                    let x = std::array::from_fn(|k| inputs[k]);
                    self.settings.simd.run(AddRow::<F, T, M, K> {
                        terms,
                        x,
                        strip,
                        sums: &mut sums,
                        format: PhantomData,
                    });
                    Ok(())
                })?;
            }
            Ok(sums)
        };
        let panels = (0..self.columns.div_ceil(PANEL)).into_par_iter().map(of_panel).collect::<Result<Vec<_>>>()?;
        Ok(panels.concat())
    }
}

/// Adds the terms of a row, each to the sums of its column.
struct AddRow<'a, F, T, const M: usize, const K: usize> {
    terms: &'a T,
    x: [&'a [u8]; M],
    strip: Range<usize>,
    sums: &'a mut [[f64; K]],
    format: PhantomData<F>,
}

impl<F: Lanes, T: Terms<F::Real, M, K>, const M: usize, const K: usize> Task for AddRow<'_, F, T, M, K> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let (stretch, _) = self.terms.stretch(self.strip.start);
        let whole = self.strip.len() / W * W;
        let mut x = [[F::Real::default(); W]; M];
        for i in (0..whole).step_by(W) {
            for k in 0..M {
                x[k] = F::in_order(self.x[k], i);
            }
            let terms = self.terms.terms::<W>(&stretch, At { first: self.strip.start + i, step: 1 }, x);
            for (j, sums) in self.sums[i..i + W].iter_mut().enumerate() {
                for k in 0..K {
                    sums[k] += terms[k][j];
                }
            }
        }
        for i in whole..self.strip.len() {
            let at = At { first: self.strip.start + i, step: 1 };
            let terms = self.terms.terms::<1>(&stretch, at, self.x.map(|x| [F::get(x, i)]));
            for k in 0..K {
                self.sums[i][k] += terms[k][0];
            }
        }
    }
}
