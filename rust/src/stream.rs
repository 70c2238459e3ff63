//! Gives a kernel its sources' elements: straight from the mapped files, or through strips in another format.
use crate::dtype::{Float, transcode};
use crate::error::{Error, Result};
use crate::kernels::STRIP;
use crate::plan::TensorTask;
use crate::shard::{Shard, Tensor};
use crate::simd::Simd;
use std::ops::Range;
use std::sync::Arc;

/// A float tensor of an input file.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The file.
    pub shard: &'a Shard,
    /// The tensor in it.
    pub tensor: &'a Tensor,
    /// Its format.
    pub float: Float,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// A tensor of a float format; others are refused.
    pub fn new(shard: &'a Shard, tensor: &'a Tensor) -> Result<Self> {
        let float = Float::of(tensor.dtype).ok_or_else(|| {
            let reason = format!("tensor `{}` is {}, which is not a float format", tensor.name, tensor.dtype);
            Error::checkpoint(&shard.path, reason)
        })?;
        Ok(View { shard, tensor, float, bytes: shard.bytes(tensor) })
    }

    /// The bytes of some elements.
    pub fn slice(&self, elements: Range<usize>) -> &'a [u8] {
        let size = self.float.bytes();
        &self.bytes[elements.start * size..elements.end * size]
    }

    /// Asks for elements ahead of their use.
    pub fn fetch(&self, elements: Range<usize>) {
        let size = self.float.bytes();
        self.shard.fetch(self.tensor, elements.start * size..elements.end * size);
    }
}

/// The sources of a task as views.
pub fn views<'a>(task: &TensorTask, shards: &'a [Arc<Shard>]) -> Result<Vec<View<'a>>> {
    task.resolve(shards)?.into_iter().map(|(shard, tensor)| View::new(shard, tensor)).collect()
}

/// The format in which several can be taken together: their own where they agree, else f64 where one is f64, else f32.
pub fn common(mut floats: impl Iterator<Item = Float> + Clone) -> Float {
    let wide = if floats.clone().any(|f| f == Float::F64) { Float::F64 } else { Float::F32 };
    match floats.next() {
        Some(first) if floats.all(|f| f == first) => first,
        _ => wide,
    }
}

/// Hands `views` out in format `work`, at most `step` elements a call: `take(elements, inputs)`. Views that are in
/// another format go through strips.
pub fn runs(
    views: &[View],
    work: Float,
    elements: Range<usize>,
    step: usize,
    simd: Simd,
    mut take: impl FnMut(Range<usize>, &[&[u8]]),
) {
    let direct = views.iter().all(|view| view.float == work);
    let step = if direct { step } else { step.min(STRIP) };
    let strip = if direct { 0 } else { step * work.bytes() };
    let mut strips = vec![vec![0; strip]; views.len()];
    let mut start = elements.start;
    while start < elements.end {
        let run = start..elements.end.min(start.saturating_add(step));
        let bytes = if direct { 0 } else { run.len() * work.bytes() };
        for (view, strip) in views.iter().zip(&mut strips).filter(|(view, _)| view.float != work) {
            transcode(simd, view.float, view.slice(run.clone()), work, &mut strip[..bytes]);
        }
        let inputs: Vec<&[u8]> = views
            .iter()
            .zip(&strips)
            .map(|(view, strip)| if view.float == work { view.slice(run.clone()) } else { &strip[..bytes] })
            .collect();
        take(run.clone(), &inputs);
        start = run.end;
    }
}
