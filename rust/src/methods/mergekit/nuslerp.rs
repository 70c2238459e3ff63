//! Spherical interpolation by weights: unit vectors, their dot product, the angle and its sines are rounded.
use super::pointwise::{Formula, Pointwise};
use super::reductions::{Norm, Sum, reduced_all};
use super::rounding::Round;
use crate::error::Result;
use crate::lanes::{Each, Kernel, Lanes};
use crate::methods::nuslerp::Nuslerp;
use crate::sweep::Sweep;
use std::marker::PhantomData;
use std::ops::Range;

/// Two factors, and what the sum is divided by unless the vectors are parallel.
struct Arc([f32; 2], Option<f32>);

/// One arc for the tensor, or for each row.
struct Arcs<D> {
    found: Vec<Arc>,
    columns: usize,
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

/// Returns the kernel of `nuslerp`.
pub fn nuslerp<F: Lanes, D: Round>(method: &Nuslerp, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
    let t = method.weights[1] / (method.weights[0] + method.weights[1]);
    let found = if method.nuslerp_flatten || sweep.rows == 1 {
        vec![arc::<F, D>(sweep, t, 0..sweep.len())?]
    } else {
        sweep.each_row(|row| arc::<F, D>(sweep, t, row))?
    };
    Ok(Box::new(Each(Pointwise(Arcs::<D> { found, columns: sweep.columns, dtype: PhantomData }))))
}

fn arc<F: Lanes, D: Round>(sweep: &Sweep<F>, t: f64, at: Range<usize>) -> Result<Arc> {
    let all = sweep.all();
    let norms = reduced_all::<Norm, D, F>(sweep, &all, at.clone(), 2, |_, x, found| {
        found.copy_from_slice(&vectors::<D>(x));
    })?;
    let norms = [0, 1].map(|k| norms[k].max(D::narrow(1e-7)));
    let product = reduced_all::<Sum, D, F>(sweep, &all, at, 1, |_, x, found| {
        let [a, b] = vectors::<D>(x);
        found[0] = D::narrow(D::narrow(a / norms[0]) * D::narrow(b / norms[1]));
    })?;
    let cosine = product[0].clamp(-1.0, 1.0);
    let shares = [(1.0 - t) as f32, t as f32];
    if D::narrow(1.0 - D::narrow(cosine * cosine)) <= 1e-16 {
        return Ok(Arc(shares, None));
    }
    let angle = D::narrow(libm::acos(cosine.into()) as f32);
    let sine = |x: f32| D::narrow(libm::sin(x.into()) as f32);
    Ok(Arc(shares.map(|share| sine(D::narrow(share * angle))), Some(sine(angle))))
}

impl<D: Round> Formula for Arcs<D> {
    #[inline(always)]
    fn element(&self, index: usize, x: &[f32]) -> f32 {
        let Arc([first, second], divisor) = match &self.found[..] {
            [arc] => arc,
            arcs => &arcs[index / self.columns],
        };
        let [a, b] = vectors::<D>(x);
        let sum = D::narrow(D::narrow(first * a) + D::narrow(second * b));
        let y = divisor.map_or(sum, |divisor| D::narrow(sum / divisor));
        if x.len() == 3 { D::narrow(x[0] + y) } else { y }
    }
}
