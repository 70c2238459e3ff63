//! Barycentric interpolation on the sphere: unit vectors, their mean, what they have across it, and the step are rounded.
use super::added::{in_order, over_models};
use super::pointwise::{Formula, Pointwise};
use super::reductions::{Norm, Sum, reduced_all, reduced_numbers};
use super::rounding::Round;
use crate::error::{Error, Result};
use crate::lanes::{Each, Kernel, Lanes};
use crate::methods::multislerp::Multislerp;
use crate::sweep::Sweep;
use std::marker::PhantomData;

/// What is known of a tensor, one sweep after the other.
struct Mean<D> {
    based: bool,
    weights: Vec<f32>,
    norms: Vec<f32>,
    eps: f32,
    /// Of the mean of the unit vectors.
    length: f32,
    /// What the unit vectors have along that mean.
    along: Vec<f32>,
    /// Cosine of the step, and its sine over the step.
    turn: [f32; 2],
    scale: f32,
    /// Whether the directions of two models cancel, which are interpolated linearly then.
    opposite: bool,
    /// See [`in_order`].
    rest: usize,
    dtype: PhantomData<D>,
}

impl<D: Round> Mean<D> {
    fn vector(&self, x: &[f32], model: usize) -> f32 {
        if self.based { D::narrow(x[model + 1] - x[0]) } else { x[model] }
    }

    fn unit(&self, x: &[f32], model: usize) -> f32 {
        D::narrow(self.vector(x, model) / D::narrow(self.norms[model] + self.eps))
    }

    /// Sums a number of each model, times its weight.
    fn weighted(&self, index: usize, number: impl Fn(usize) -> f32) -> f32 {
        let term = |model: usize| [D::narrow(number(model) * self.weights[model])];
        D::narrow(over_models(self.weights.len(), index >= self.rest, term)[0])
    }

    fn mean(&self, index: usize, x: &[f32]) -> f32 {
        self.weighted(index, |model| self.unit(x, model))
    }

    fn direction(&self, index: usize, x: &[f32]) -> f32 {
        D::narrow(self.mean(index, x) / self.length)
    }

    fn across(&self, index: usize, x: &[f32], direction: f32) -> f32 {
        self.weighted(index, |model| D::narrow(self.unit(x, model) - D::narrow(self.along[model] * direction)))
    }
}

/// Returns the kernel of `multislerp`.
pub fn multislerp<F: Lanes, D: Round>(method: &Multislerp, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
    let count = method.weights.len();
    let mut weights: Vec<f32> = method.weights.iter().map(|weight| D::narrow(*weight as f32)).collect();
    if method.normalize {
        let sum = D::narrow(reduced_numbers::<Sum>(&weights));
        for weight in &mut weights {
            *weight = D::narrow(*weight / sum);
        }
    }
    let mut mean = Mean::<D> {
        based: sweep.sources().len() > count,
        weights,
        norms: Vec::new(),
        eps: method.eps as f32,
        length: 0.0,
        along: Vec::new(),
        turn: [0.0; 2],
        scale: 0.0,
        opposite: false,
        rest: in_order::<D>(sweep.len()),
        dtype: PhantomData,
    };
    let (all, whole) = (sweep.all(), 0..sweep.len());
    mean.norms = reduced_all::<Norm, D, F>(sweep, &all, whole.clone(), count, |_, x, found| {
        (0..count).for_each(|model| found[model] = mean.vector(x, model));
    })?;
    mean.length = reduced_all::<Norm, D, F>(sweep, &all, whole.clone(), 1, |at, x, found| {
        found[0] = mean.mean(at, x);
    })?[0];
    if count == 1 {
        return Ok(Box::new(Each(Pointwise(mean))));
    }
    if mean.length < D::narrow(mean.eps) {
        if count == 2 {
            mean.opposite = true;
            return Ok(Box::new(Each(Pointwise(mean))));
        }
        return Err(Error::Merge("the directions of the models cancel, and multislerp has no mean direction".into()));
    }
    mean.along = reduced_all::<Sum, D, F>(sweep, &all, whole.clone(), count, |at, x, found| {
        let direction = mean.direction(at, x);
        (0..count).for_each(|model| found[model] = D::narrow(mean.unit(x, model) * direction));
    })?;
    let step = reduced_all::<Norm, D, F>(sweep, &all, whole, 1, |at, x, found| {
        found[0] = mean.across(at, x, mean.direction(at, x));
    })?[0];
    let step = D::narrow(step + mean.eps);
    let [cosine, sine] = [libm::cos(step.into()), libm::sin(step.into())].map(|x| D::narrow(x as f32));
    mean.turn = [cosine, D::narrow(sine / step)];
    let terms: Vec<f32> = mean.weights.iter().zip(&mean.norms).map(|(w, norm)| D::narrow(w * norm)).collect();
    mean.scale = D::narrow(reduced_numbers::<Sum>(&terms));
    Ok(Box::new(Each(Pointwise(mean))))
}

impl<D: Round> Formula for Mean<D> {
    fn element(&self, index: usize, x: &[f32]) -> f32 {
        if self.weights.len() == 1 {
            return x[x.len() - 1];
        }
        let based = |y: f32| if self.based { D::narrow(y + x[0]) } else { y };
        if self.opposite {
            return based(self.weighted(index, |model| self.vector(x, model)));
        }
        let direction = self.direction(index, x);
        let across = self.across(index, x, direction);
        let turned = D::narrow(D::narrow(direction * self.turn[0]) + D::narrow(across * self.turn[1]));
        based(D::narrow(turned * self.scale))
    }
}
