//! The k-th largest of any score of an element, exactly, for several scores at once.
use super::count::{Count, Counted, count, gather, key_of};
use super::search::{Inconsistent, Search, Step};
use super::sums::union;
use super::{STRIP, Sweep};
use crate::error::{Error, Result};
use crate::lanes::Lanes;
use crate::real::Real;
use std::marker::PhantomData;
use std::ops::Range;

pub use super::search::COLLECT;

/// Elements of a sample at most, and the share of a tensor that it is of smaller ones.
const SAMPLE: usize = 1 << 16;
const SHARE: usize = 32;
/// Places from which neighbouring elements are sampled: not more, or a cold file is read page by page.
const PLACES: usize = 64;

/// A number of each element of `M` sources, never negative, as an ordered key.
pub trait Score<R: Real, const M: usize>: Sync {
    /// The sources it looks at.
    fn reads(&self) -> [usize; M];
    /// The keys. `#[inline(always)]`, without branches on an element.
    fn keys<const N: usize>(&self, x: [[R; N]; M]) -> [R::Key; N];
}

/// Which elements are among the largest: keys above `key`, and keys equal to it before element `cut`.
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

impl<F: Lanes> Sweep<'_, F> {
    /// For each score and rank which elements are among the `rank` largest, equal ones lowest index first. Every search
    /// goes on at once: what they read of a tensor is read once for all.
    pub fn select<S: Score<F::Real, M>, const M: usize>(&self, wanted: &[(S, usize)]) -> Result<Vec<Threshold>> {
        let none = Threshold { key: F::Real::TOP - 1, cut: 0 };
        let all = Threshold { key: -1, cut: 0 };
        let mut found = vec![none; wanted.len()];
        let mut open = Vec::new();
        for (which, (score, rank)) in wanted.iter().enumerate() {
            if *rank >= self.len() {
                found[which] = all;
            } else if *rank > 0 {
                open.push((which, Search::new(self.len(), *rank, F::Real::TOP, self.sample(score)?)));
            }
        }
        while !open.is_empty() {
            let asked: Vec<(&S, Step)> =
                open.iter().map(|(which, search)| (&wanted[*which].0, search.step())).collect();
            let mut tiles = self.tiles(|tile| self.ask(&asked, tile))?;
            for ((which, mut search), (score, step)) in std::mem::take(&mut open).into_iter().zip(&asked).rev() {
                // A tile answers in the order asked, so what it says last belongs to the last search.
                let answers: Vec<Answer> = tiles.iter_mut().filter_map(Vec::pop).collect();
                let learned = learn(&mut search, step, &answers).map_err(|Inconsistent| self.changed(*score))?;
                match (learned, search.step()) {
                    (Some(equals), Step::Done { key, equal }) => {
                        found[which] = Threshold { key, cut: self.cut(*score, &equals, key, equal)? };
                    }
                    _ => open.push((which, search)),
                }
            }
        }
        Ok(found)
    }

    /// What a search found that cannot end.
    fn changed<S: Score<F::Real, M>, const M: usize>(&self, score: &S) -> Error {
        let mut names = Vec::new();
        for read in score.reads() {
            self.sources[read].leaves(&mut |tensor| {
                names.push(format!("tensor `{}` of {}", tensor.entry().name, tensor.path().display()));
            });
        }
        Error::Changed(format!("{} changed while it was read", names.join(" or ")))
    }

    /// Hands out what one score reads of some elements.
    fn scored<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        at: Range<usize>,
        mut take: impl FnMut(Range<usize>, [&[u8]; M]),
    ) -> Result<()> {
        let reads = score.reads();
        let chosen = union(&reads);
        self.pieces(&chosen, at, STRIP, |piece, inputs| {
            take(piece, reads.map(|read| inputs[chosen.partition_point(|k| *k < read)]));
            Ok(())
        })
    }

    /// Answers every search for one tile.
    fn ask<S: Score<F::Real, M>, const M: usize>(
        &self,
        asked: &[(&S, Step)],
        tile: Range<usize>,
    ) -> Result<Vec<Answer>> {
        let reads: Vec<[usize; M]> = asked.iter().map(|(score, _)| score.reads()).collect();
        let chosen = union(reads.as_flattened());
        let simd = self.settings.simd;
        let mut answers: Vec<Answer> = asked.iter().map(|_| Answer::default()).collect();
        self.pieces(&chosen, tile, 2 * STRIP, |_, inputs| {
            let mut counted = Vec::with_capacity(asked.len());
            for (((score, step), reads), answer) in asked.iter().zip(&reads).zip(&mut answers) {
                let x = reads.map(|read| inputs[chosen.partition_point(|k| *k < read)]);
                match step {
                    Step::Count(pivots) => {
                        counted.push(Counted { score: *score, x, pivots, counts: &mut answer.counts });
                    }
                    // More than a search of data that stand still asks for.
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

    /// Keys at fixed places of the tensor; none where all of them will be collected.
    fn sample<S: Score<F::Real, M>, const M: usize>(&self, score: &S) -> Result<Vec<i64>> {
        let mut keys = Vec::new();
        if self.len() <= COLLECT {
            return Ok(keys);
        }
        let (run, stride) = (SAMPLE.min(self.len() / SHARE) / PLACES, self.len() / PLACES);
        for place in 0..PLACES as u64 {
            // A fixed jitter, so that a pattern in the rows does not line up with the stride.
            let jitter = (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % (stride - run + 1);
            let start = place as usize * stride + jitter;
            self.scored(score, start..start + run, |_, x| {
                gather::<F, S, M>(self.settings.simd, score, x, -1, F::Real::TOP, &mut keys);
            })?;
        }
        Ok(keys)
    }

    /// The element after the `r`-th whose key equals `key`, from the counts of each tile.
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

    /// The same, by looking from element `start` on.
    fn nth_equal<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        start: usize,
        key: i64,
        r: usize,
    ) -> Result<usize> {
        let (mut before, mut found) = (0, None);
        for from in (start..self.len()).step_by(STRIP) {
            self.scored(score, from..self.len().min(from + STRIP), |piece, x| {
                let equal = count::<F, S, M>(self.settings.simd, score, x, &[key])[0][1];
                if found.is_none() && before + equal >= r {
                    let is_equal = |i: &usize| key_of::<F, S, M>(score, x, *i).into() == key;
                    found = (0..piece.len()).filter(is_equal).nth(r - before - 1).map(|i| piece.start + i + 1);
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
