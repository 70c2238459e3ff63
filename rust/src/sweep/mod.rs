//! Statistics that a method may need of a whole tensor before its elements are combined. Tiles run in parallel and
//! their results are folded in order, so a statistic depends neither on tile size nor on threads.
pub mod blocks;
mod count;
pub mod gram;
pub mod ranks;
pub mod search;
pub mod select;
pub mod sums;

pub use sums::Terms;

use crate::dtype::Float;
use crate::error::Result;
use crate::lanes::{Kernel, Lanes};
use crate::source::{Settings, Slot, Source, lease_as};
use rayon::prelude::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements per block: sums of blocks are folded in order, so they do not depend on tiles or threads.
pub const BLOCK: usize = 65_536;
/// Elements per strip when sources compute their elements: with a handful of inputs they stay in the second-level
/// cache.
pub const STRIP: usize = 8192;
/// Elements after which a sweep over several terms moves on to the next one: their shared inputs stay in the
/// first-level cache.
const TURN: usize = 4096;

thread_local! {
    /// Buffers for the strips that this thread makes next.
    static SLOTS: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// The sources of a method, swept in format `F`.
pub struct Sweep<'a, F: Lanes> {
    sources: &'a [Box<dyn Source>],
    /// Rows (the product of all leading axes).
    pub rows: usize,
    /// Elements per row.
    pub columns: usize,
    /// Run settings.
    pub settings: Settings<'a>,
    ready: bool,
    /// Strips end at multiples of this, or at the last element.
    unit: usize,
    /// Makes one more source from all of them; its index is the number of sources.
    made: Option<&'a dyn Kernel<F>>,
    format: PhantomData<F>,
}

impl<'a, F: Lanes> Sweep<'a, F> {
    /// Creates a sweep over prepared sources of the same shape, at least one.
    pub fn new(sources: &'a [Box<dyn Source>], settings: Settings<'a>) -> Self {
        let (rows, columns) = sources[0].shape();
        let ready = sources.iter().all(|source| source.ready() && source.float() == F::FLOAT);
        let unit = sources.iter().map(|source| source.unit()).max().unwrap_or(1);
        Self { sources, rows, columns, settings, ready, unit, made: None, format: PhantomData }
    }

    /// Returns the same sweep over whole rows: its tiles and strips end where a row ends.
    #[must_use]
    pub fn in_rows(mut self) -> Self {
        self.unit = self.columns.max(1);
        self.settings.tile = self.settings.tile.next_multiple_of(self.unit);
        self
    }

    /// Returns the same sources and one more, made by a kernel from all of them; its index is the number of sources.
    #[must_use]
    pub fn with<'k>(&self, kernel: &'k dyn Kernel<F>) -> Sweep<'k, F>
    where
        'a: 'k,
    {
        Sweep { made: Some(kernel), ..*self }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the sources.
    pub fn sources(&self) -> &[Box<dyn Source>] {
        self.sources
    }

    /// Returns the indices of all sources, as `strips` expects them.
    pub fn all(&self) -> Vec<usize> {
        (0..self.sources.len()).collect()
    }

    fn tile(&self, index: usize) -> Range<usize> {
        let (len, tile) = (self.len(), self.settings.tile);
        len.min(index.saturating_mul(tile))..len.min((index + 1).saturating_mul(tile))
    }

    /// Runs `visit` for every tile in parallel; returns the results in order.
    pub fn tiles<T: Send>(&self, visit: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
        let of_tile = |index| {
            self.settings.watch.check()?;
            let next = self.tile(index + 1);
            self.sources.iter().for_each(|source| source.fetch(next.clone()));
            visit(self.tile(index))
        };
        (0..self.len().div_ceil(self.settings.tile)).into_par_iter().map(of_tile).collect()
    }

    /// Runs `visit` for the elements of every row in parallel; returns the results in order.
    pub fn each_row<T: Send>(&self, visit: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let of_row = |row: usize| {
            self.settings.watch.check()?;
            visit(row * self.columns..(row + 1) * self.columns)
        };
        let group = (self.settings.tile / self.columns).max(1);
        (0..self.rows).into_par_iter().with_min_len(group).map(of_row).collect()
    }

    /// Calls `take(elements, inputs)` for elements `at` of the `chosen` sources in format `F`, about `step` elements
    /// a call.
    pub fn strips(
        &self,
        chosen: &[usize],
        at: Range<usize>,
        step: usize,
        mut take: impl FnMut(Range<usize>, &[&[u8]]) -> Result<()>,
    ) -> Result<()> {
        let Some(kernel) = self.made else { return self.leased(chosen, at, step, take) };
        let mut made = Vec::new();
        self.leased(&self.all(), at, step.min(STRIP), |strip, inputs| {
            made.resize(strip.len() * F::BYTES, 0);
            kernel.run(self.settings.simd, strip.clone(), inputs, &mut made);
            let of = |source: &usize| inputs.get(*source).copied().unwrap_or(&made);
            take(strip, &chosen.iter().map(of).collect::<Vec<_>>())
        })
    }

    /// The same without the source that is made.
    fn leased(
        &self,
        chosen: &[usize],
        at: Range<usize>,
        step: usize,
        mut take: impl FnMut(Range<usize>, &[&[u8]]) -> Result<()>,
    ) -> Result<()> {
        let strip = || chosen.iter().map(|source| self.sources[*source].strip()).fold(STRIP, usize::max);
        let step = if self.ready { step } else { step.min(strip()) };
        // Taken out and put back, since `take` may need strips of its own.
        let mut slots = SLOTS.take();
        if slots.len() < chosen.len() {
            slots.resize_with(chosen.len(), Slot::default);
        }
        let mut done = Ok(());
        let mut start = at.start;
        while start < at.end && done.is_ok() {
            let strip = start..at.end.min(start.saturating_add(step).next_multiple_of(self.unit));
            let lease = |(source, slot): (&usize, _)| {
                let source: &dyn Source = &*self.sources[*source];
                lease_as(source, F::FLOAT, self.settings.simd, strip.clone(), slot)
            };
            let inputs: Result<Vec<_>> = chosen.iter().zip(&mut slots).map(lease).collect();
            done = inputs.and_then(|inputs: Vec<&[u8]>| take(strip.clone(), &inputs));
            start = strip.end;
        }
        SLOTS.set(slots);
        done
    }
}

/// Returns the format in which several sources are computed: their own if equal, else f64 if one of them is f64, else
/// f32.
pub fn common(mut floats: impl Iterator<Item = Float> + Clone) -> Float {
    let wide = if floats.clone().any(|f| f == Float::F64) { Float::F64 } else { Float::F32 };
    match floats.next() {
        Some(first) if floats.all(|f| f == first) => first,
        _ => wide,
    }
}
