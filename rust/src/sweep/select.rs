//! The k-th largest of any score of an element, exactly, for several scores at once.
use super::search::{Inconsistent, Search, Step};
use super::sums::union;
use super::{STRIP, Sweep};
use crate::error::{Error, Result};
use crate::lanes::{Lanes, W};
use crate::real::Real;
use crate::simd::{PREFETCH, Simd, Task, prefetch};
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
            for (((score, step), reads), answer) in asked.iter().zip(&reads).zip(&mut answers) {
                let x = reads.map(|read| inputs[chosen.partition_point(|k| *k < read)]);
                match step {
                    Step::Count(pivots) => {
                        let counts = count::<F, S, M>(simd, *score, x, pivots);
                        for (total, count) in answer.counts.as_flattened_mut().iter_mut().zip(counts.as_flattened()) {
                            *total += count;
                        }
                    }
                    // More than a search of data that stand still asks for.
                    Step::Collect(..) if answer.keys.len() > COLLECT => {}
                    Step::Collect(low, high) => gather::<F, S, M>(simd, *score, x, *low, *high, &mut answer.keys),
                    Step::Done { .. } => {}
                }
            }
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

fn key_of<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    score: &S,
    x: [&[u8]; M],
    i: usize,
) -> <F::Real as Real>::Key {
    score.keys::<1>(x.map(|x| [F::get(x, i)]))[0]
}

/// Counts the keys above and equal to one or two pivots, two vectors at a time.
struct Count<'a, F: Lanes, S, const M: usize, const P: usize> {
    score: &'a S,
    x: [&'a [u8]; M],
    pivots: [<F::Real as Real>::Key; P],
}

impl<F: Lanes, S: Score<F::Real, M>, const M: usize, const P: usize> Task for Count<'_, F, S, M, P> {
    type Output = [[u32; 2]; P];
    #[inline(always)]
    fn run(self) -> [[u32; 2]; P] {
        let [mut low, mut high] = [[[F::Real::default(); W]; M]; 2];
        let mut counts = [[[0u32; W]; 2]; P];
        let whole = self.x[0].len() / F::BYTES / (2 * W) * (2 * W);
        for i in (0..whole).step_by(2 * W) {
            for k in 0..M {
                if (i * F::BYTES).is_multiple_of(PREFETCH) {
                    prefetch(self.x[k], i * F::BYTES);
                }
                [low[k], high[k]] = F::load(self.x[k], i);
            }
            let (low, high) = (self.score.keys::<W>(low), self.score.keys::<W>(high));
            for p in 0..P {
                for j in 0..W {
                    counts[p][0][j] += u32::from(low[j] > self.pivots[p]) + u32::from(high[j] > self.pivots[p]);
                    counts[p][1][j] += u32::from(low[j] == self.pivots[p]) + u32::from(high[j] == self.pivots[p]);
                }
            }
        }
        let mut totals = counts.map(|pair| pair.map(|lanes| lanes.iter().sum::<u32>()));
        for i in whole..self.x[0].len() / F::BYTES {
            let key = key_of::<F, S, M>(self.score, self.x, i);
            for p in 0..P {
                totals[p][0] += u32::from(key > self.pivots[p]);
                totals[p][1] += u32::from(key == self.pivots[p]);
            }
        }
        totals
    }
}

/// Counts keys above and equal to each of one or two pivots, over fewer than 2^32 elements.
pub fn count<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    simd: Simd,
    score: &S,
    x: [&[u8]; M],
    pivots: &[i64],
) -> [[usize; 2]; 2] {
    if let [pivot] = *pivots {
        let [counts] = simd.run(Count::<F, S, M, 1> { score, x, pivots: [F::Real::narrow_key(pivot)] });
        return [counts.map(|n| n as usize), [0; 2]];
    }
    let pivots = [0, 1].map(|i| F::Real::narrow_key(pivots[i]));
    simd.run(Count::<F, S, M, 2> { score, x, pivots }).map(|pair| pair.map(|n| n as usize))
}

/// Appends the keys above `low`, up to and with `last`, in order.
struct Gather<'a, F: Lanes, S, const M: usize> {
    score: &'a S,
    x: [&'a [u8]; M],
    low: <F::Real as Real>::Key,
    last: <F::Real as Real>::Key,
    keys: &'a mut Vec<i64>,
}

impl<F: Lanes, S: Score<F::Real, M>, const M: usize> Task for Gather<'_, F, S, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let mut x = [[F::Real::default(); W]; M];
        let whole = self.x[0].len() / F::BYTES / W * W;
        for i in (0..whole).step_by(W) {
            for k in 0..M {
                x[k] = F::in_order(self.x[k], i);
            }
            let keys = self.score.keys::<W>(x);
            let hits: u32 = keys.iter().map(|key| u32::from(*key > self.low) & u32::from(*key <= self.last)).sum();
            if hits > 0 {
                let inside = keys.iter().filter(|key| **key > self.low && **key <= self.last);
                self.keys.extend(inside.map(|key| (*key).into()));
            }
        }
        for i in whole..self.x[0].len() / F::BYTES {
            let key = key_of::<F, S, M>(self.score, self.x, i);
            if key > self.low && key <= self.last {
                self.keys.push(key.into());
            }
        }
    }
}

/// Appends the keys strictly between `low` and `high`, in order.
fn gather<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    simd: Simd,
    score: &S,
    x: [&[u8]; M],
    low: i64,
    high: i64,
    keys: &mut Vec<i64>,
) {
    let (low, last) = (F::Real::narrow_key(low), F::Real::narrow_key(high - 1));
    simd.run(Gather::<F, S, M> { score, x, low, last, keys });
}
