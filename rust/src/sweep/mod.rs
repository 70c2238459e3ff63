//! What a method may ask of a whole tensor before its elements are combined. Tiles run in parallel, and what they say is
//! folded in order, so an answer depends neither on tiles nor on threads.
mod count;
pub mod gram;
pub mod search;
pub mod select;
pub mod sums;

pub use sums::Terms;

use crate::dtype::Float;
use crate::error::Result;
use crate::lanes::Lanes;
use crate::source::{Settings, Slot, Source, lease_as};
use rayon::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of a block: sums of blocks are folded in order, so they do not depend on tiles or threads.
pub const BLOCK: usize = 65_536;
/// Elements that are made at once where sources do not lie ready: with a handful of inputs they stay in the second-level
/// cache.
pub const PIECE: usize = 8192;
/// Elements after which a sweep with several questions goes on to the next one: what they share stays in the first-level
/// cache.
const STRIP: usize = 4096;

thread_local! {
    /// Room for the pieces that this thread makes next.
    static SLOTS: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// The sources of a method, and how they are swept in format `F`.
pub struct Sweep<'a, F> {
    sources: &'a [Box<dyn Source>],
    /// Rows, of all leading axes.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// How the task is run.
    pub settings: Settings<'a>,
    ready: bool,
    format: PhantomData<F>,
}

impl<'a, F: Lanes> Sweep<'a, F> {
    /// Sources of one shape, prepared; there is at least one.
    pub fn new(sources: &'a [Box<dyn Source>], settings: Settings<'a>) -> Self {
        let (rows, columns) = sources[0].shape();
        let ready = sources.iter().all(|source| source.ready() && source.float() == F::FLOAT);
        Self { sources, rows, columns, settings, ready, format: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sources.
    pub fn sources(&self) -> &[Box<dyn Source>] {
        self.sources
    }

    /// Every source, as `pieces` takes them.
    pub fn all(&self) -> Vec<usize> {
        (0..self.sources.len()).collect()
    }

    fn tile(&self, index: usize) -> Range<usize> {
        let (len, tile) = (self.len(), self.settings.tile);
        len.min(index.saturating_mul(tile))..len.min((index + 1).saturating_mul(tile))
    }

    /// Runs `visit` for every tile in parallel; the results come in order.
    pub fn tiles<T: Send>(&self, visit: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
        let of_tile = |index| {
            self.settings.watch.check()?;
            let next = self.tile(index + 1);
            self.sources.iter().for_each(|source| source.fetch(next.clone()));
            visit(self.tile(index))
        };
        (0..self.len().div_ceil(self.settings.tile)).into_par_iter().map(of_tile).collect()
    }

    /// Runs `visit` for every block of every tile; the results come in block order.
    fn blocks<T: Send>(&self, visit: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
        let of_tile = |tile: Range<usize>| {
            let starts = tile.clone().step_by(BLOCK);
            starts.map(|start| visit(start..tile.end.min(start + BLOCK))).collect::<Result<Vec<T>>>()
        };
        Ok(self.tiles(of_tile)?.into_iter().flatten().collect())
    }

    /// Hands out elements `at` of the `chosen` sources in format `F`, at most `step` a call: `take(elements, inputs)`.
    pub fn pieces(
        &self,
        chosen: &[usize],
        at: Range<usize>,
        step: usize,
        mut take: impl FnMut(Range<usize>, &[&[u8]]) -> Result<()>,
    ) -> Result<()> {
        let step = if self.ready { step } else { step.min(PIECE) };
        // Taken and given back: what `take` does may want pieces of its own.
        let mut slots = SLOTS.take();
        if slots.len() < chosen.len() {
            slots.resize_with(chosen.len(), Slot::default);
        }
        let mut done = Ok(());
        let mut start = at.start;
        while start < at.end && done.is_ok() {
            let piece = start..at.end.min(start.saturating_add(step));
            let lease = |(source, slot): (&usize, _)| {
                let source: &dyn Source = &*self.sources[*source];
                lease_as(source, F::FLOAT, self.settings.simd, piece.clone(), slot)
            };
            let inputs: Result<Vec<_>> = chosen.iter().zip(&mut slots).map(lease).collect();
            done = inputs.and_then(|inputs: Vec<&[u8]>| take(piece.clone(), &inputs));
            start = piece.end;
        }
        SLOTS.set(slots);
        done
    }
}

/// The format in which several can be taken together: their own where they agree, else f64 where one is f64, else f32.
pub fn common(mut floats: impl Iterator<Item = Float> + Clone) -> Float {
    let wide = if floats.clone().any(|f| f == Float::F64) { Float::F64 } else { Float::F32 };
    match floats.next() {
        Some(first) if floats.all(|f| f == first) => first,
        _ => wide,
    }
}
