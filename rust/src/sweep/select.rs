//! The exact k-th largest value of any score of the elements, for several scores at once.
use super::count::{Count, Counted, count, gather, key_of};
use super::search::{Inconsistent, PIVOTS, Search, Step, around};
use super::sums::union;
use super::{Sweep, TURN};
use crate::error::{Error, Result};
use crate::lanes::Lanes;
use crate::real::Real;
use std::marker::PhantomData;
use std::ops::Range;

pub use super::search::COLLECT;

/// Maximum number of elements in a sample, and the fraction of a smaller tensor that is sampled.
const SAMPLE: usize = 1 << 16;
const SHARE: usize = 32;
/// Positions from which runs of neighbouring elements are sampled; with more of them a cold file would be read page by
/// page.
const POSITIONS: usize = 64;

/// A non-negative number for each element of `M` sources, as an ordered key.
pub trait Score<R: Real, const M: usize>: Sync {
    /// Indices of the sources it reads.
    fn reads(&self) -> [usize; M];
    /// Computes the keys. `#[inline(always)]`, without branches on an element.
    fn keys<const N: usize>(&self, x: [[R; N]; M]) -> [R::Key; N];
}

/// What a sweep makes, as it is: the source after the last.
pub struct Made(pub usize);

impl<R: Real> Score<R, 1> for Made {
    fn reads(&self) -> [usize; 1] {
        [self.0]
    }

    #[inline(always)]
    fn keys<const N: usize>(&self, [x]: [[R; N]; 1]) -> [R::Key; N] {
        x.map(R::key)
    }
}

/// Which elements are among the largest: keys above `key`, and keys equal to it before element `cut`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// The smallest surviving key.
    pub key: i64,
    /// End of the range in which elements with that key survive.
    pub cut: usize,
}

impl Threshold {
    /// Every element.
    pub const ALL: Self = Self { key: -1, cut: 0 };

    /// No element.
    fn none<R: Real>() -> Self {
        Self { key: R::TOP - 1, cut: 0 }
    }

    /// From element `from` on, up to the second of both, those survive whose key is above the first.
    pub fn above<R: Real>(&self, from: usize) -> (R::Key, usize) {
        let end = if self.cut > from { self.cut } else { usize::MAX };
        (R::narrow_key(self.key - i64::from(from < self.cut)), end)
    }
}

/// The answer of one tile to one search: counts for its pivots, or the keys it collects.
#[derive(Default)]
struct Answer {
    counts: [[usize; 2]; PIVOTS],
    keys: Vec<i64>,
}

impl Answer {
    /// Sums the counts of all tiles.
    fn total(answers: &[Self]) -> [[usize; 2]; PIVOTS] {
        let total = |pivot: usize, which: usize| answers.iter().map(|answer| answer.counts[pivot][which]).sum();
        std::array::from_fn(|pivot| [0, 1].map(|which| total(pivot, which)))
    }
}

/// Passes the answers of the tiles to a search. Once it is done, returns how many keys of each tile equal the result.
fn learn(
    search: &mut Search,
    step: &Step,
    answers: &[Answer],
) -> std::result::Result<Option<Vec<usize>>, Inconsistent> {
    if let Step::Count(pivots) = step {
        let pivot = search.counted(pivots, &Answer::total(answers))?;
        return Ok(pivot.map(|pivot| answers.iter().map(|answer| answer.counts[pivot][1]).collect()));
    }
    search.collected(answers.iter().flat_map(|answer| answer.keys.iter().copied()).collect())?;
    let Step::Done { key, .. } = search.step() else { return Ok(None) };
    Ok(Some(answers.iter().map(|answer| answer.keys.iter().filter(|k| **k == key).count()).collect()))
}

impl<F: Lanes> Sweep<'_, F> {
    /// Finds, for each score and rank, which elements are among the `rank` largest, equal ones lowest index first. All
    /// searches run together, so a tensor is read once for all of them.
    pub fn select<S: Score<F::Real, M>, const M: usize>(&self, wanted: &[(S, usize)]) -> Result<Vec<Threshold>> {
        let mut found = vec![Threshold::none::<F::Real>(); wanted.len()];
        let mut open = Vec::new();
        for (which, (score, rank)) in wanted.iter().enumerate() {
            if *rank >= self.len() {
                found[which] = Threshold::ALL;
            } else if *rank > 0 {
                open.push((which, Search::new(self.len(), *rank, F::Real::TOP, self.sample(score)?)));
            }
        }
        while !open.is_empty() {
            let steps: Vec<(&S, Step)> =
                open.iter().map(|(which, search)| (&wanted[*which].0, search.step())).collect();
            let mut tiles = self.tiles(|tile| self.ask(&steps, tile))?;
            for ((which, mut search), (score, step)) in std::mem::take(&mut open).into_iter().zip(&steps).rev() {
                // Tiles answer in the order of the searches, so pop from the last.
                let answers: Vec<Answer> = tiles.iter_mut().filter_map(Vec::pop).collect();
                match self.learn(*score, &mut search, step, &answers)? {
                    Some(threshold) => found[which] = threshold,
                    None => open.push((which, search)),
                }
            }
        }
        Ok(found)
    }

    /// Finds which elements are among the largest, where `wanted` returns their number from that of the keys that are not
    /// zero.
    pub fn select_part<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        wanted: impl Fn(usize) -> usize,
    ) -> Result<Threshold> {
        let mut sample = self.sample(score)?;
        // The same sweep counts those that are not zero and, most often, nearly all that are surely among the largest.
        let mut step = Step::Count(around(&mut sample, self.len(), &wanted));
        let mut search = None;
        loop {
            let steps = [(score, step)];
            let tiles = self.tiles(|tile| self.ask(&steps, tile))?;
            let answers: Vec<Answer> = tiles.into_iter().flatten().collect();
            let search = match &mut search {
                Some(search) => search,
                None => match wanted(Answer::total(&answers)[0][0]) {
                    0 => return Ok(Threshold::none::<F::Real>()),
                    rank if rank >= self.len() => return Ok(Threshold::ALL),
                    rank => search.insert(Search::new(self.len(), rank, F::Real::TOP, std::mem::take(&mut sample))),
                },
            };
            if let Some(threshold) = self.learn(score, search, &steps[0].1, &answers)? {
                return Ok(threshold);
            }
            step = search.step();
        }
    }

    /// Passes the answers of the tiles to a search. Once it is done, returns which elements it found.
    fn learn<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        search: &mut Search,
        step: &Step,
        answers: &[Answer],
    ) -> Result<Option<Threshold>> {
        let learned = learn(search, step, answers).map_err(|Inconsistent| self.changed(score))?;
        let (Some(equals), Step::Done { key, equal }) = (learned, search.step()) else { return Ok(None) };
        Ok(Some(Threshold { key, cut: self.cut(score, &equals, key, equal)? }))
    }

    /// Returns the error of a search whose data changed.
    fn changed<S: Score<F::Real, M>, const M: usize>(&self, score: &S) -> Error {
        let mut names = Vec::new();
        let reads = score.reads();
        let is_read = |source: &usize| reads.contains(source) || reads.contains(&self.sources.len());
        for (_, source) in self.sources.iter().enumerate().filter(|(index, _)| is_read(index)) {
            source.leaves(&mut |tensor| {
                names.push(format!("tensor `{}` of {}", tensor.entry().name, tensor.path().display()));
            });
        }
        Error::Changed(format!("{} changed while being read", names.join(" or ")))
    }

    /// Reads the sources of one score for some elements.
    pub(super) fn scored<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        at: Range<usize>,
        mut take: impl FnMut(Range<usize>, [&[u8]; M]),
    ) -> Result<()> {
        let reads = score.reads();
        let chosen = union(&reads);
        self.strips(&chosen, at, TURN, |strip, inputs| {
            take(strip, reads.map(|read| inputs[chosen.partition_point(|k| *k < read)]));
            Ok(())
        })
    }

    /// Answers every search for one tile.
    fn ask<S: Score<F::Real, M>, const M: usize>(
        &self,
        steps: &[(&S, Step)],
        tile: Range<usize>,
    ) -> Result<Vec<Answer>> {
        let reads: Vec<[usize; M]> = steps.iter().map(|(score, _)| score.reads()).collect();
        let chosen = union(reads.as_flattened());
        let simd = self.settings.simd;
        let mut answers: Vec<Answer> = steps.iter().map(|_| Answer::default()).collect();
        self.strips(&chosen, tile, 2 * TURN, |_, inputs| {
            let mut counted = Vec::with_capacity(steps.len());
            for (((score, step), reads), answer) in steps.iter().zip(&reads).zip(&mut answers) {
                let x = reads.map(|read| inputs[chosen.partition_point(|k| *k < read)]);
                match step {
                    Step::Count(pivots) => {
                        counted.push(Counted { score: *score, x, pivots, counts: &mut answer.counts });
                    }
                    // More than a search over unchanged data requests.
                    Step::Collect(..) if answer.keys.len() > COLLECT => {}
                    Step::Collect(low, high) => gather::<F, S, M>(simd, *score, x, *low, *high, &mut answer.keys),
                    Step::Done { .. } => {}
                }
            }
            simd.run(Count::<F, S, M>(&mut counted, PhantomData));
            Ok(())
        })?;
        Ok(answers)
    }

    /// Samples keys at fixed positions of the tensor; none if all of them will be collected.
    fn sample<S: Score<F::Real, M>, const M: usize>(&self, score: &S) -> Result<Vec<i64>> {
        let mut keys = Vec::new();
        if self.len() <= COLLECT {
            return Ok(keys);
        }
        let (run, stride) = (SAMPLE.min(self.len() / SHARE) / POSITIONS, self.len() / POSITIONS);
        for position in 0..POSITIONS as u64 {
            // A fixed jitter, so that patterns in the rows do not align with the stride.
            let jitter = (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % (stride - run + 1);
            let start = position as usize * stride + jitter;
            self.scored(score, start..start + run, |_, x| {
                gather::<F, S, M>(self.settings.simd, score, x, -1, F::Real::TOP, &mut keys);
            })?;
        }
        Ok(keys)
    }

    /// Returns the end of the range that holds the first `r` elements whose key equals `key`, from the counts of each
    /// tile.
    fn cut<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        equals: &[usize],
        key: i64,
        r: usize,
    ) -> Result<usize> {
        if equals.iter().sum::<usize>() == r {
            return Ok(self.len());
        }
        let mut before = 0;
        for (tile, equal) in equals.iter().enumerate() {
            if before + equal >= r {
                return self.nth_equal(score, self.tile(tile).start, key, r - before);
            }
            before += equal;
        }
        Ok(self.len())
    }

    /// Returns the same by scanning from element `start` on.
    fn nth_equal<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        start: usize,
        key: i64,
        r: usize,
    ) -> Result<usize> {
        let (mut before, mut found) = (0, None);
        for from in (start..self.len()).step_by(TURN) {
            self.scored(score, from..self.len().min(from + TURN), |strip, x| {
                let equal = count::<F, S, M>(self.settings.simd, score, x, &[key])[0][1];
                if found.is_none() && before + equal >= r {
                    let is_equal = |i: &usize| key_of::<F, S, M>(score, x, *i).into() == key;
                    found = (0..strip.len()).filter(is_equal).nth(r - before - 1).map(|i| strip.start + i + 1);
                }
                before += equal;
            })?;
            if found.is_some() {
                break;
            }
        }
        Ok(found.unwrap_or(self.len()))
    }
}
