//! The result of a method as a source: stages of a recipe without a file between them.
use super::{Settings, Slot, Source, first_nonfinite, lease_as};
use crate::dtype::{F32, F64, Float};
use crate::error::{Error, Result};
use crate::lanes::{Kernel, Peaks};
use crate::methods::Method;
use crate::real::Real;
use crate::simd::Simd;
use crate::sweep::Sweep;
use std::ops::Range;

/// The result of a method.
pub(super) struct Merged {
    pub by: Method,
    pub of: Vec<Box<dyn Source>>,
    /// Key of its random numbers, if not that of the task.
    pub key: Option<[u32; 2]>,
    pub allow_nonfinite: bool,
    /// Once it is prepared.
    pub kernel: Option<Either>,
}

/// A kernel in either precision.
pub(super) enum Either {
    Single(Box<dyn Kernel<F32>>),
    Double(Box<dyn Kernel<F64>>),
}

/// Returns whether a result and all that it is made of are finite.
fn is_finite<R: Real>(peaks: Peaks<R>) -> bool {
    peaks.witness.max(peaks.result) < R::INFINITE
}

impl Merged {
    /// Returns the error of a result that is not finite.
    fn blame(&self, simd: Simd) -> Result<Error> {
        if let Some(error) = first_nonfinite(&self.of, simd, &|| Ok(()))? {
            return Ok(error);
        }
        let mut names = Vec::new();
        self.leaves(&mut |leaf| names.push(format!("`{}` of {}", leaf.entry().name, leaf.path().display())));
        Ok(Error::NonFinite(format!(
            "a step of the recipe makes numbers too large for {:?} from {}; choose smaller weights, or pass \
             --allow-nonfinite",
            self.float(),
            names.join(" and ")
        )))
    }
}

impl Source for Merged {
    fn float(&self) -> Float {
        if self.of.iter().any(|source| source.float() == Float::F64) { Float::F64 } else { Float::F32 }
    }

    fn shape(&self) -> (usize, usize) {
        self.of[0].shape()
    }

    fn unit(&self) -> usize {
        let rows = match &self.kernel {
            Some(Either::Single(kernel)) => kernel.whole_rows(),
            Some(Either::Double(kernel)) => kernel.whole_rows(),
            None => false,
        };
        if rows { self.shape().1.max(1) } else { 1 }
    }

    fn lease<'s>(&'s self, simd: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let kernel =
            self.kernel.as_ref().ok_or_else(|| Error::Panic("a stage is read before it is prepared".into()))?;
        let float = self.float();
        let (inner, bytes) = slot.split(self.of.len(), at.len() * float.bytes());
        let mut inputs = Vec::with_capacity(self.of.len());
        for (source, slot) in self.of.iter().zip(inner) {
            inputs.push(lease_as(&**source, float, simd, at.clone(), slot)?);
        }
        let finite = match kernel {
            Either::Single(kernel) => is_finite(kernel.run(simd, at, &inputs, bytes)),
            Either::Double(kernel) => is_finite(kernel.run(simd, at, &inputs, bytes)),
        };
        // The method of the task may drop what is not.
        if finite || self.allow_nonfinite { Ok(bytes) } else { Err(self.blame(simd)?) }
    }

    fn fetch(&self, at: Range<usize>) {
        self.of.iter().for_each(|source| source.fetch(at.clone()));
    }

    fn resident(&self) -> usize {
        let (rows, columns) = self.shape();
        let own = self.by.resident(rows, columns, self.of.len());
        own + self.of.iter().map(|source| source.resident()).sum::<usize>()
    }

    fn prepare(&mut self, settings: &Settings) -> Result<()> {
        self.of.iter_mut().try_for_each(|source| source.prepare(settings))?;
        let own = Settings { key: self.key.unwrap_or(settings.key), ..*settings };
        self.kernel = Some(match self.float() {
            Float::F64 => Either::Double(self.by.prepare(&Sweep::<F64>::new(&self.of, own))?),
            _ => Either::Single(self.by.prepare(&Sweep::<F32>::new(&self.of, own))?),
        });
        Ok(())
    }

    fn parts(&self) -> &[Box<dyn Source>] {
        &self.of
    }

    fn parts_mut(&mut self) -> &mut [Box<dyn Source>] {
        &mut self.of
    }
}
