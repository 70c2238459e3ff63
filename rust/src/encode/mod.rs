//! How the results of a task become bytes of its target.
mod plain;

use crate::dtype::Float;
use crate::simd::Simd;
use plain::Plain;
use safetensors::Dtype;
use std::ops::Range;

/// A way to store results. A format of its own (codes and scales) is another of these, and [`of`] names it: a job asks
/// nothing else about its target.
pub trait Encode: Send + Sync {
    /// The float format whose elements the bytes are, if they are no more than that: kernels store those themselves, and
    /// equal ones are copied.
    fn plain(&self) -> Option<Float>;

    /// The largest magnitude that does not overflow when it is stored.
    fn largest(&self) -> f64;

    /// What messages call it.
    fn name(&self) -> String;

    /// Bytes of some elements.
    fn bytes(&self, elements: usize) -> usize;

    /// Makes the bytes of elements `at` from their values in format `float`.
    fn encode(&self, simd: Simd, at: Range<usize>, float: Float, values: &[u8], to: &mut [u8]);
}

/// How a tensor of this element type is stored, if that takes results of arithmetic.
pub fn of(dtype: Dtype) -> Option<Box<dyn Encode>> {
    Some(Box::new(Plain(Float::of(dtype)?)))
}
