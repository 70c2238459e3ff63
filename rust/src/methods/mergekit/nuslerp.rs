//! Spherical interpolation by weights: unit vectors, their dot product, the angle and its sines are rounded.
use super::columns::{Panel, each_panel};
use super::pointwise::{Formula, Pointwise};
use super::reductions::{Norm, Sum, reduced_all};
use super::rounding::Round;
use crate::error::{Error, Result};
use crate::lanes::{Each, Kernel, Lanes};
use crate::methods::nuslerp::Nuslerp;
use crate::sweep::Sweep;
use std::marker::PhantomData;
use std::ops::Range;

/// Two factors, and what the sum is divided by unless the vectors are parallel.
struct Arc([f32; 2], Option<f32>);

/// Bytes that stay for each column.
pub const OF_COLUMN: usize = size_of::<Arc>();

/// One arc for the tensor, or for each row or column.
struct Arcs<D> {
    found: Vec<Arc>,
    /// Elements that one row has.
    columns: usize,
    down: bool,
    dtype: PhantomData<D>,
}

/// Returns the two vectors' elements: of three sources the differences from the first.
#[inline(always)]
fn vectors<D: Round>(x: &[f32]) -> [f32; 2] {
    match *x {
        [base, a, b] => [D::narrow(a - base), D::narrow(b - base)],
        _ => [x[0], x[1]],
    }
}

/// Returns the kernel of `nuslerp`; `leading` is the length of the first axis, along which columns lie.
pub fn nuslerp<F: Lanes, D: Round>(
    method: &Nuslerp,
    leading: Option<usize>,
    sweep: &Sweep<F>,
) -> Result<Box<dyn Kernel<F>>> {
    let t = method.weights[1] / (method.weights[0] + method.weights[1]);
    let down = leading.filter(|_| method.by_columns());
    if let Some(rows) = down
        && sweep.len().checked_rem(rows).unwrap_or(sweep.len()) != 0
    {
        return Err(Error::Merge(format!("{} elements do not divide into {rows} rows (`leading`)", sweep.len())));
    }
    let columns = down.map_or(sweep.columns, |rows| sweep.len().checked_div(rows).unwrap_or(0));
    let found = match down {
        // A single column lies together, as a vector does.
        Some(rows) if columns != 1 => {
            each_panel::<F, D, _>(sweep, rows, |panel| arcs::<F, D>(sweep, t, panel))?.into_iter().flatten().collect()
        }
        None if !method.nuslerp_flatten && sweep.rows > 1 => sweep.each_row(|row| arc::<F, D>(sweep, t, row))?,
        _ => vec![arc::<F, D>(sweep, t, 0..sweep.len())?],
    };
    Ok(Box::new(Each(Pointwise(Arcs::<D> { found, columns, down: down.is_some(), dtype: PhantomData }))))
}

/// Returns the arc of a row.
fn arc<F: Lanes, D: Round>(sweep: &Sweep<F>, t: f64, at: Range<usize>) -> Result<Arc> {
    let all = sweep.all();
    let norms = reduced_all::<Norm, D, F>(sweep, &all, at.clone(), 2, |_, x, found| {
        found.copy_from_slice(&vectors::<D>(x));
    })?;
    let norms = least::<D>([norms[0], norms[1]]);
    let product = reduced_all::<Sum, D, F>(sweep, &all, at, 1, |_, x, found| found[0] = term::<D>(x, norms))?;
    Ok(between::<D>(product[0], t))
}

/// Returns the arcs of columns.
fn arcs<F: Lanes, D: Round>(sweep: &Sweep<F>, t: f64, panel: &Panel) -> Result<Vec<Arc>> {
    let mut norms = panel.norms::<F, D>(sweep, vectors::<D>)?;
    for norms in &mut norms {
        *norms = least::<D>(*norms);
    }
    let products = panel.sums::<F, D>(sweep, |column, x| term::<D>(x, norms[column]))?;
    Ok(products.into_iter().map(|product| between::<D>(product, t)).collect())
}

/// Returns norms that vectors can be divided by.
fn least<D: Round>(norms: [f32; 2]) -> [f32; 2] {
    norms.map(|norm| norm.max(D::narrow(1e-7)))
}

/// Returns a term of the dot product of the unit vectors.
#[inline(always)]
fn term<D: Round>(x: &[f32], norms: [f32; 2]) -> f32 {
    let [a, b] = vectors::<D>(x);
    D::narrow(D::narrow(a / norms[0]) * D::narrow(b / norms[1]))
}

/// Returns the arc between vectors of a dot product.
fn between<D: Round>(product: f32, t: f64) -> Arc {
    let cosine = product.clamp(-1.0, 1.0);
    let shares = [(1.0 - t) as f32, t as f32];
    if D::narrow(1.0 - D::narrow(cosine * cosine)) <= 1e-16 {
        return Arc(shares, None);
    }
    let angle = D::narrow(libm::acos(cosine.into()) as f32);
    let sine = |x: f32| D::narrow(libm::sin(x.into()) as f32);
    Arc(shares.map(|share| sine(D::narrow(share * angle))), Some(sine(angle)))
}

impl<D: Round> Formula for Arcs<D> {
    #[inline(always)]
    fn element(&self, index: usize, x: &[f32]) -> f32 {
        let Arc([first, second], divisor) = match &self.found[..] {
            [arc] => arc,
            arcs => &arcs[if self.down { index % self.columns } else { index / self.columns }],
        };
        let [a, b] = vectors::<D>(x);
        let sum = D::narrow(D::narrow(first * a) + D::narrow(second * b));
        let y = divisor.map_or(sum, |divisor| D::narrow(sum / divisor));
        if x.len() == 3 { D::narrow(x[0] + y) } else { y }
    }
}
