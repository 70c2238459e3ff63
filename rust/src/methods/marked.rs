//! Elements that survive by a bit each; the bits are held from the sums to the kernel where memory allows.
use super::delta::{Keep, Masses, rescaled};
use crate::bits::Bits;
use crate::error::Result;
use crate::lanes::{At, Lanes};
use crate::real::Real;
use crate::source::Settings;
use crate::sweep::sums::total;
use crate::sweep::{BLOCK, Sweep};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of bits of a tensor that are held.
const HELD: usize = 24 << 20;

/// Elements survive whose bit is set; all survive for a model without bits.
#[derive(Default)]
pub struct Marked(pub Vec<Option<Bits>>);

impl Marked {
    /// Returns `v` where elements of a model survive, else +0.
    #[inline(always)]
    pub fn keep<R: Real, const N: usize>(&self, at: At, model: usize, v: [R; N]) -> [R; N] {
        self.0[model].apply(&(), at, model, v, v)
    }
}

/// The elements of one model.
impl<R: Real> Keep<R> for Option<Bits> {
    type Stretch = ();

    #[inline(always)]
    fn apply<const N: usize>(&self, (): &(), at: At, _: usize, _: [R; N], v: [R; N]) -> [R; N] {
        if let Some(bits) = self { bits.keep(at, v) } else { v }
    }
}

impl<R: Real> Keep<R> for &Marked {
    type Stretch = ();
    const UNROLLED: bool = true;

    #[inline(always)]
    fn apply<const N: usize>(&self, (): &(), at: At, model: usize, _: [R; N], v: [R; N]) -> [R; N] {
        self.keep(at, model, v)
    }
}

/// What survives of the first elements of a tensor, with the element up to which each of these holds. Of a large tensor
/// not all is held: the rest is marked again wherever it is read.
#[derive(Default)]
pub struct Held(Vec<(usize, Arc<Marked>)>);

impl Held {
    /// Returns what is held of an element, and up to which one.
    pub fn at(&self, element: usize) -> Option<&(usize, Arc<Marked>)> {
        self.0.get(self.0.partition_point(|(end, _)| *end <= element))
    }
}

/// Returns the bytes that are held of a tensor of which `unit` elements are marked together.
pub fn held(rows: usize, columns: usize, unit: usize, models: usize) -> usize {
    held_up_to(rows.saturating_mul(columns), 4 * BLOCK, unit, models).min(HELD)
}

/// Returns the bytes of the bits of a tensor up to an element, if those of each tile are of whole units.
fn held_up_to(element: usize, tile: usize, unit: usize, models: usize) -> usize {
    let ends = element.div_ceil(tile).saturating_mul(unit.saturating_mul(2));
    models.saturating_mul(Bits::bytes(element.saturating_add(ends)))
}

/// Computes the factors of the survivors as [`rescaled`] does, and returns what is held of them. `mark` marks tiles of the
/// tensor, and with them whole units.
pub fn factors<F: Lanes>(
    sweep: &Sweep<F>,
    weights: &[f64],
    unit: usize,
    mark: impl Fn(Range<usize>) -> Result<Marked> + Sync,
) -> Result<(Vec<f64>, Held)> {
    let models = weights.len();
    // Sums are over blocks, so the units at both ends of a tile are marked for its neighbours too.
    let tile = sweep.settings.tile.max(unit.next_multiple_of(BLOCK));
    let sweep = Sweep::<F>::new(sweep.sources(), Settings { tile, ..sweep.settings });
    let tiles = sweep.tiles(|at| {
        let marked = mark(at.clone())?;
        let terms: Vec<_> = marked.0.iter().enumerate().map(|(model, keep)| Masses { keep, model }).collect();
        let sums = sweep.sums_of_tile(&terms, at.clone())?;
        let held = held_up_to(at.end, tile, unit, models) <= HELD;
        Ok((sums, held.then(|| (at.end, Arc::new(marked)))))
    })?;
    let (sums, held): (Vec<_>, Vec<_>) = tiles.into_iter().unzip();
    Ok((rescaled(weights, &total(models, &sums)), Held(held.into_iter().flatten().collect())))
}
