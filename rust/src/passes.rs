//! What some methods must know of a whole tensor before its elements are combined: sweeps over tiles, folded in order.
use crate::dtype::{Float, Format, with_format};
use crate::error::{Error, Result};
use crate::kernels::select::{self, Inconsistent, SAMPLE, SAMPLE_RUN, Search, Step};
use crate::kernels::slerp::Products;
use crate::kernels::ties::Masses;
use crate::kernels::{BLOCK, STRIP};
use crate::real::Real;
use crate::simd::Simd;
use crate::stream::{View, common, runs};
use crate::watch::Watch;
use rayon::prelude::*;
use std::ops::Range;

/// A sweep over the tiles of a tensor.
#[derive(Clone, Copy)]
pub struct Sweep<'a> {
    /// Elements of the tensor.
    pub len: usize,
    /// Elements of a tile.
    pub tile: usize,
    /// Instruction set.
    pub simd: Simd,
    /// Progress and cancel.
    pub watch: &'a Watch,
}

impl Sweep<'_> {
    fn tile(&self, index: usize) -> Range<usize> {
        self.len.min(index * self.tile)..self.len.min((index + 1) * self.tile)
    }

    /// Runs `visit` for every tile in parallel; the results come in order.
    pub fn tiles<T: Send>(&self, views: &[View], visit: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
        let tiles = 0..self.len.div_ceil(self.tile);
        tiles
            .into_par_iter()
            .map(|index| {
                self.watch.check()?;
                let next = self.tile(index + 1);
                for view in views {
                    view.fetch(next.clone());
                }
                visit(self.tile(index))
            })
            .collect()
    }

    /// Runs `visit` for every block of every tile; the results come in block order.
    fn blocks<T: Send>(&self, views: &[View], visit: impl Fn(Range<usize>) -> T + Sync) -> Result<Vec<T>> {
        let of_tile = |tile: Range<usize>| {
            let starts = tile.clone().step_by(BLOCK);
            Ok(starts.map(|start| visit(start..tile.end.min(start + BLOCK))).collect::<Vec<T>>())
        };
        Ok(self.tiles(views, of_tile)?.into_iter().flatten().collect())
    }
}

/// `a.b`, `a.a`, `b.b` of each block of two tensors.
pub fn products(sweep: Sweep, views: &[View]) -> Result<Vec<[f64; 3]>> {
    let work = common(views.iter().map(|view| view.float));
    sweep.blocks(views, |block| {
        let mut products = Products::default();
        runs(views, work, block, BLOCK, sweep.simd, |_, x| {
            with_format!(work, F => products.add::<F>(sweep.simd, x[0], x[1]));
        });
        products.totals()
    })
}

/// Which deltas of a model survive trimming: keys above `key`, and keys equal to it before element `cut`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// The smallest surviving key.
    pub key: i64,
    /// The element after the last survivor with that key.
    pub cut: usize,
}

/// What one tile says to one search: counts for its pivots, or the keys it collects.
#[derive(Default)]
struct Answer {
    counts: [[usize; 2]; 2],
    keys: Vec<i64>,
}

/// Tells a search what the tiles said. Once that settles it, returns how many keys of each tile equal the answer.
fn learn(
    search: &mut Search,
    step: &Step,
    answers: &[Answer],
) -> std::result::Result<Option<Vec<usize>>, Inconsistent> {
    if let Step::Count(pivots) = step {
        let total = |pivot: usize, which: usize| answers.iter().map(|answer| answer.counts[pivot][which]).sum();
        let totals = [0, 1].map(|pivot| [0, 1].map(|which| total(pivot, which)));
        let pivot = search.counted(pivots, &totals)?;
        return Ok(pivot.map(|pivot| answers.iter().map(|answer| answer.counts[pivot][1]).collect()));
    }
    search.collected(answers.iter().flat_map(|answer| answer.keys.iter().copied()).collect())?;
    let Step::Done { key, .. } = search.step() else { return Ok(None) };
    Ok(Some(answers.iter().map(|answer| answer.keys.iter().filter(|k| **k == key).count()).collect()))
}

/// The thresholds of `models` over `base`, as keys of format `work`, for densities in [0, 1]: exactly
/// `max(1, trunc(density * len))` survive, equal magnitudes lowest index first.
pub fn thresholds(sweep: Sweep, work: Float, base: View, models: &[View], densities: &[f64]) -> Result<Vec<Threshold>> {
    with_format!(work, F => search_all::<F>(sweep, base, models, densities))
}

fn search_all<F: Format>(sweep: Sweep, base: View, models: &[View], densities: &[f64]) -> Result<Vec<Threshold>> {
    let none = Threshold { key: F::Real::TOP - 1, cut: 0 };
    let all = Threshold { key: -1, cut: 0 };
    let mut found: Vec<Threshold> = densities.iter().map(|d| if *d >= 1.0 { all } else { none }).collect();
    let mut open = Vec::new();
    for (model, density) in densities.iter().enumerate() {
        if *density <= 0.0 || *density >= 1.0 || sweep.len == 0 {
            continue;
        }
        let k = ((density * sweep.len as f64) as usize).max(1);
        let search = Search::new(sweep.len, k, F::Real::TOP, sample::<F>(sweep, base, models[model]));
        if let Step::Done { key, equal } = search.step() {
            let cut = nth_equal::<F>(sweep, base, models[model], 0, key, equal);
            found[model] = Threshold { key, cut };
        } else {
            open.push((model, search));
        }
    }
    while !open.is_empty() {
        let steps: Vec<Step> = open.iter().map(|(_, search)| search.step()).collect();
        let chosen: Vec<View> = std::iter::once(base).chain(open.iter().map(|(model, _)| models[*model])).collect();
        let mut tiles = sweep.tiles(&chosen, |tile| Ok(ask::<F>(sweep, &chosen, &steps, tile)))?;
        for ((model, mut search), step) in std::mem::take(&mut open).into_iter().zip(steps).rev() {
            // A tile answers in the order asked, so what it says last belongs to the last search.
            let answers: Vec<Answer> = tiles.iter_mut().filter_map(Vec::pop).collect();
            let learned = learn(&mut search, &step, &answers).map_err(|Inconsistent| changed(models[model]))?;
            match (learned, search.step()) {
                (Some(equals), Step::Done { key, equal }) => {
                    let cut = cut::<F>(sweep, base, models[model], &equals, key, equal);
                    found[model] = Threshold { key, cut };
                }
                _ => open.push((model, search)),
            }
        }
    }
    Ok(found)
}

/// What a search found that cannot end.
fn changed(model: View) -> Error {
    let reason = format!("tensor `{}` (or the base's) changed while it was read", model.tensor.name);
    Error::Changed(Error::checkpoint(&model.shard.path, reason).to_string())
}

/// Answers every search for one tile; the base's strip is read from memory once for all models.
fn ask<F: Format>(sweep: Sweep, chosen: &[View], steps: &[Step], tile: Range<usize>) -> Vec<Answer> {
    let mut answers: Vec<Answer> = steps.iter().map(|_| Answer::default()).collect();
    runs(chosen, F::FLOAT, tile, 2 * STRIP, sweep.simd, |_, inputs| {
        for ((x, step), answer) in inputs[1..].iter().zip(steps).zip(&mut answers) {
            match step {
                Step::Count(pivots) => {
                    let counts = select::count::<F>(sweep.simd, inputs[0], x, pivots);
                    for (total, count) in answer.counts.as_flattened_mut().iter_mut().zip(counts.as_flattened()) {
                        *total += count;
                    }
                }
                // More than a search of data that stand still asks for.
                Step::Collect(..) if answer.keys.len() > select::COLLECT => {}
                Step::Collect(low, high) => {
                    select::gather::<F>(sweep.simd, inputs[0], x, *low, *high, &mut answer.keys);
                }
                Step::Done { .. } => {}
            }
        }
    });
    answers
}

/// Keys at fixed places of the tensor, all of them where it is small.
fn sample<F: Format>(sweep: Sweep, base: View, model: View) -> Vec<i64> {
    let mut keys = Vec::with_capacity(SAMPLE);
    let mut take = |range: Range<usize>| {
        runs(&[base, model], F::FLOAT, range, SAMPLE_RUN, sweep.simd, |_, x| {
            select::gather::<F>(sweep.simd, x[0], x[1], -1, F::Real::TOP, &mut keys);
        });
    };
    if sweep.len <= 2 * SAMPLE {
        take(0..sweep.len);
    } else {
        let runs = SAMPLE / SAMPLE_RUN;
        let stride = sweep.len / runs;
        for run in 0..runs as u64 {
            // A fixed jitter, so that a pattern in the rows does not line up with the stride.
            let jitter = (run.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % (stride - SAMPLE_RUN + 1);
            let start = run as usize * stride + jitter;
            take(start..start + SAMPLE_RUN);
        }
    }
    keys
}

/// The element after the `r`-th whose key equals `key`, from the counts of each tile.
fn cut<F: Format>(sweep: Sweep, base: View, model: View, equals: &[usize], key: i64, r: usize) -> usize {
    if equals.iter().sum::<usize>() == r {
        return sweep.len;
    }
    let mut before = 0;
    for (tile, equal) in equals.iter().enumerate() {
        if before + equal >= r {
            return nth_equal::<F>(sweep, base, model, sweep.tile(tile).start, key, r - before);
        }
        before += equal;
    }
    sweep.len
}

/// The same, by looking from element `start` on.
fn nth_equal<F: Format>(sweep: Sweep, base: View, model: View, start: usize, key: i64, r: usize) -> usize {
    let mut before = 0;
    let mut found = None;
    let mut from = start;
    while found.is_none() && from < sweep.len {
        let to = sweep.len.min(from + STRIP);
        runs(&[base, model], F::FLOAT, from..to, STRIP, sweep.simd, |run, x| {
            let equal = select::count::<F>(sweep.simd, x[0], x[1], &[key])[0][1];
            if before + equal >= r {
                found = select::nth_equal::<F>(x[0], x[1], key, r - before).map(|i| run.start + i);
            }
            before += equal;
        });
        from = to;
    }
    found.unwrap_or(sweep.len)
}

/// `sum |d|` and `sum |d|` of the survivors, for each model.
pub fn masses(
    sweep: Sweep,
    work: Float,
    base: View,
    models: &[View],
    thresholds: &[Threshold],
) -> Result<Vec<[f64; 2]>> {
    let chosen: Vec<View> = std::iter::once(base).chain(models.iter().copied()).collect();
    let blocks = sweep.blocks(&chosen, |block| {
        let mut masses = vec![Masses::default(); models.len()];
        runs(&chosen, work, block, STRIP, sweep.simd, |run, inputs| {
            for ((x, masses), threshold) in inputs[1..].iter().zip(&mut masses).zip(thresholds) {
                let cut = threshold.cut.saturating_sub(run.start);
                with_format!(work, F => masses.add::<F>(sweep.simd, inputs[0], x, threshold.key, cut));
            }
        });
        masses.iter().map(Masses::totals).collect::<Vec<_>>()
    })?;
    let mut totals = vec![[0.0; 2]; models.len()];
    for block in blocks {
        for (total, masses) in totals.iter_mut().zip(block) {
            total[0] += masses[0];
            total[1] += masses[1];
        }
    }
    Ok(totals)
}
