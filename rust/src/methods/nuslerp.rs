//! Spherical interpolation by weights, of task vectors if there is a base; one angle for the tensor, or one per row or
//! column. Where mol differs from mergekit: vectors that are parallel or opposite within |cos| > 1 - 1e-8 are
//! interpolated linearly, and tensors of one row are treated as a whole.
use super::slerp::arc;
use super::{Checked, Merge, expect, finite};
use crate::error::Result;
use crate::lanes::{At, Combine, Each, Kernel, Lanes};
use crate::real::Real;
use crate::sweep::Sweep;
use crate::sweep::gram::Over;

/// Interpolates between two models by their weights; the first of three sources is a base.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nuslerp {
    /// Of the two models.
    pub weights: Vec<f64>,
    /// One angle for the whole tensor.
    pub nuslerp_flatten: bool,
    /// Otherwise: one angle per column instead of per row.
    pub nuslerp_row_wise: bool,
}

impl Nuslerp {
    /// Returns whether matrices have one angle per column.
    pub(super) fn by_columns(&self) -> bool {
        // mergekit's name for it.
        !self.nuslerp_flatten && self.nuslerp_row_wise
    }

    fn over(&self, rows: usize) -> Over {
        match self {
            _ if self.nuslerp_flatten || rows == 1 => Over::Tensor,
            _ if self.by_columns() => Over::Column,
            _ => Over::Row,
        }
    }
}

/// Two weights for the tensor, or for each row or column.
struct Arcs<R> {
    weights: Vec<[R; 2]>,
    over: Over,
    columns: usize,
    based: bool,
}

impl<R: Real> Combine<R> for Arcs<R> {
    /// The first element of the row, and the row.
    type Stretch = [usize; 2];
    const WITNESS: bool = false;

    fn stretch(&self, from: usize) -> ([usize; 2], usize) {
        match self.over {
            Over::Tensor => ([0, 0], usize::MAX),
            Over::Row | Over::Column => {
                let row = from / self.columns;
                ([row * self.columns, row], (row + 1) * self.columns)
            }
        }
    }

    #[inline(always)]
    fn lanes<const N: usize>(&self, [start, row]: &[usize; 2], at: At, x: &mut [[R; N]]) -> ([R; N], [R; N]) {
        let mut weights = [[R::default(); 2]; N];
        if self.over == Over::Column {
            for j in 0..N {
                weights[j] = self.weights[at.first - start + j * at.step];
            }
        } else {
            weights = [self.weights[*row]; N];
        }
        let [mut a, mut b] = [x[x.len() - 2], x[x.len() - 1]];
        let mut y = a;
        if self.based {
            for j in 0..N {
                a[j] = a[j] - x[0][j];
                b[j] = b[j] - x[0][j];
            }
        }
        for j in 0..N {
            y[j] = weights[j][0] * a[j] + weights[j][1] * b[j];
        }
        if self.based {
            for j in 0..N {
                y[j] = x[0][j] + y[j];
            }
        }
        (y, y)
    }
}

impl Merge for Nuslerp {
    const SWEEPS: u64 = 2;

    fn check(&self, sources: usize) -> Checked<(), String> {
        if sources != 3 {
            expect(sources, 2)?;
        }
        expect(self.weights.len(), 2).and(finite("weight", &self.weights))?;
        if self.weights.iter().sum::<f64>() == 0.0 {
            return Err("weights sum to zero, and are divided by their sum".into());
        }
        Ok(())
    }

    fn resident(&self, rows: usize, columns: usize, _: usize) -> usize {
        let vectors = match self.over(rows) {
            Over::Tensor => 1,
            Over::Row => rows,
            Over::Column => columns,
        };
        vectors.saturating_mul(5 * size_of::<f64>())
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        let t = self.weights[1] / self.weights.iter().sum::<f64>();
        let over = self.over(sweep.rows);
        let of_vector = |products| arc(products, t, 1.0 - 1e-8).map(F::Real::from_f64);
        let weights = sweep.products(over)?.into_iter().map(of_vector).collect();
        Ok(Box::new(Each(Arcs { weights, over, columns: sweep.columns, based: sweep.sources().len() == 3 })))
    }
}
