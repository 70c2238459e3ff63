//! How the results of a task are stored as bytes.
mod plain;

use crate::dtype::Float;
use crate::simd::Simd;
use plain::Plain;
use safetensors::Dtype;
use std::ops::Range;

/// An encoding of results. A new one (such as codes and scales) implements this trait and is returned by [`of`]: a job
/// needs nothing else of its target.
pub trait Encode: Send + Sync {
    /// The float format, if the bytes are plain elements of one: then kernels store them directly, and equal formats
    /// are copied.
    fn plain(&self) -> Option<Float>;

    /// The largest magnitude that does not overflow when stored.
    fn largest(&self) -> f64;

    /// Its name, for messages.
    fn name(&self) -> String;

    /// Bytes needed for a number of elements.
    fn bytes(&self, elements: usize) -> usize;

    /// Returns the index of the first element that is not finite; those that overflow are stored as infinities.
    fn first_nonfinite(&self, stored: &[u8]) -> Option<usize>;

    /// Encodes elements `at` from their values in format `float`.
    fn encode(&self, simd: Simd, at: Range<usize>, float: Float, values: &[u8], to: &mut [u8]);
}

/// Returns the encoding of a dtype, or `None` if it cannot hold results of arithmetic.
pub fn of(dtype: Dtype) -> Option<Box<dyn Encode>> {
    Some(Box::new(Plain(Float::of(dtype)?)))
}
