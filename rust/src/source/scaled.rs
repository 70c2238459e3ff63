//! Codes times scales: weights stored as 8-bit floats.
use super::lora::whole;
use super::{Settings, Slot, Source, lease_any};
use crate::dtype::Float;
use crate::error::Result;
use crate::simd::Simd;
use std::ops::Range;

/// Codes times scales, each covering a block of a matrix; with leading axes, of each of their matrices.
pub(super) struct Scaled {
    /// Codes and scales.
    parts: [Box<dyn Source>; 2],
    /// Rows of one matrix.
    rows: usize,
    /// Rows and columns covered by one scale.
    block: [usize; 2],
    scales: Vec<f32>,
}

impl Scaled {
    pub fn new(codes: Box<dyn Source>, scales: Box<dyn Source>, rows: usize, block: [usize; 2]) -> Self {
        Self { parts: [codes, scales], rows, block, scales: Vec::new() }
    }

    /// Returns the scales of the blocks that a row crosses.
    fn scales(&self, row: usize) -> &[f32] {
        let [high, wide] = self.block;
        let across = self.shape().1.div_ceil(wide);
        let block = row / self.rows * self.rows.div_ceil(high) + row % self.rows / high;
        &self.scales[block * across..(block + 1) * across]
    }
}

impl Source for Scaled {
    /// The product of a code and a scale of up to 24 bits is rounded once, to this format.
    fn float(&self) -> Float {
        Float::F32
    }

    fn shape(&self) -> (usize, usize) {
        self.parts[0].shape()
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let ((_, columns), [_, wide]) = (self.shape(), self.block);
        let (inner, bytes) = slot.split(1, at.len() * 4);
        let codes = lease_any(&*self.parts[0], simd, at.clone(), &mut inner[0])?.as_chunks::<4>().0;
        let (weights, mut start) = (bytes.as_chunks_mut::<4>().0, at.start);
        while start < at.end {
            let (row, column) = (start / columns, start % columns);
            let scale = self.scales(row)[column / wide];
            let end = at.end.min(row * columns + columns.min((column / wide + 1).saturating_mul(wide)));
            let here = start - at.start..end - at.start;
            for (code, weight) in codes[here.clone()].iter().zip(&mut weights[here]) {
                *weight = (f32::from_le_bytes(*code) * scale).to_le_bytes();
            }
            start = end;
        }
        Ok(bytes)
    }

    fn fetch(&self, at: Range<usize>) {
        self.parts[0].fetch(at);
    }

    fn parts(&self) -> &[Box<dyn Source>] {
        &self.parts
    }

    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        &mut self.parts
    }

    fn resident(&self) -> usize {
        let [codes, scales] = &self.parts;
        codes.resident() + scales.resident() + scales.len() * size_of::<f64>()
    }

    fn prepare(&mut self, settings: &Settings) -> Result<()> {
        let [codes, scales] = &mut self.parts;
        codes.prepare(settings)?;
        self.scales = whole(&mut **scales, settings)?.into_iter().map(|scale| scale as f32).collect();
        Ok(())
    }
}
