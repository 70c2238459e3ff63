//! Plain elements of a float format.
use super::Encode;
use crate::dtype::{Float, first_nonfinite, transcode};
use crate::simd::Simd;
use std::ops::Range;

/// Plain elements of a float format.
pub(super) struct Plain(pub Float);

impl Encode for Plain {
    fn plain(&self) -> Option<Float> {
        Some(self.0)
    }

    fn largest(&self) -> f64 {
        self.0.largest()
    }

    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn bytes(&self, elements: usize) -> usize {
        elements * self.0.bytes()
    }

    fn first_nonfinite(&self, stored: &[u8]) -> Option<usize> {
        first_nonfinite(self.0, stored).map(|(index, _)| index)
    }

    fn encode(&self, simd: Simd, _: Range<usize>, float: Float, values: &[u8], to: &mut [u8]) {
        transcode(simd, float, values, self.0, to);
    }
}
