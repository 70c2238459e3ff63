//! The exact k-th largest value of any score of the elements, for several scores at once.
use super::count::{Answer, Asked, Count, Keys, Question, equal, key_of};
use super::search::{Inconsistent, PIVOTS, Search, is_pair};
use super::sums::union;
use super::{Sweep, TURN};
use crate::error::{Error, Result};
use crate::lanes::Lanes;
use crate::real::Real;
use std::iter::repeat_n;
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

    /// From element `from` on, up to the second of both, those survive whose key is above the first.
    pub fn above<R: Real>(&self, from: usize) -> (R::Key, usize) {
        let end = if self.cut > from { self.cut } else { usize::MAX };
        (R::narrow_key(self.key - i64::from(from < self.cut)), end)
    }
}

/// A search that runs: the index of its result, its score and how far it is.
struct Open<'a, S>(usize, &'a S, Search);

impl<F: Lanes> Sweep<'_, F> {
    /// Finds, for each rank of each score, which elements are among the `rank` largest, equal ones lowest index first. All
    /// searches run together, so a tensor is read once for all of them. Returns the thresholds of the first score, then
    /// those of the next.
    pub fn select<S: Score<F::Real, M>, const M: usize>(&self, wanted: &[(S, Vec<usize>)]) -> Result<Vec<Threshold>> {
        let (mut found, mut open) = (Vec::new(), Vec::new());
        for (score, ranks) in wanted {
            let first = found.len();
            found.extend(ranks.iter().map(|rank| self.known(*rank).unwrap_or(Threshold::ALL)));
            let unknown: Vec<usize> = (0..ranks.len()).filter(|which| self.known(ranks[*which]).is_none()).collect();
            if unknown.is_empty() {
                continue;
            }
            // The last search gets the sample itself, the others a copy.
            let samples = repeat_n(self.sample(score)?, unknown.len());
            for (which, sample) in unknown.into_iter().zip(samples) {
                let search = Search::new(self.len(), ranks[which], F::Real::TOP, sample);
                open.push(Open(first + which, score, search));
            }
        }
        self.search(open, &mut found)?;
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
        let first = Search::pivots_of_part(&mut sample, self.len(), F::Real::TOP, &wanted);
        let asked = [(score, Question::new(first))];
        let answers: Vec<Answer> = self.tiles(|tile| self.ask(&asked, tile))?.into_iter().flatten().collect();
        let rank = wanted(answers.iter().map(|answer| answer.above[0]).sum());
        if let Some(known) = self.known(rank) {
            return Ok(known);
        }
        let mut search = Search::new(self.len(), rank, F::Real::TOP, sample);
        if let Some(found) = self.learn(score, &mut search, &asked[0].1, &answers)? {
            return Ok(found);
        }
        let mut found = [Threshold::ALL];
        self.search(vec![Open(0, score, search)], &mut found)?;
        Ok(found[0])
    }

    /// Returns the threshold of a rank that needs no search.
    fn known(&self, rank: usize) -> Option<Threshold> {
        match rank {
            0 => Some(Threshold { key: F::Real::TOP, cut: 0 }),
            rank => (rank >= self.len()).then_some(Threshold::ALL),
        }
    }

    /// Runs searches to their end, those of a score one after the other.
    fn search<S: Score<F::Real, M>, const M: usize>(
        &self,
        mut open: Vec<Open<S>>,
        found: &mut [Threshold],
    ) -> Result<()> {
        while !open.is_empty() {
            let asked: Vec<(&S, Question)> =
                open.iter_mut().map(|Open(_, score, search)| (*score, Question::new(search.pivots()))).collect();
            let mut tiles = self.tiles(|tile| self.ask(&asked, tile))?;
            // Tiles answer in the order of the questions, so pop from the last.
            for (Open(which, score, mut search), (_, question)) in
                std::mem::take(&mut open).into_iter().zip(&asked).rev()
            {
                let answers: Vec<Answer> = tiles.iter_mut().filter_map(Vec::pop).collect();
                match self.learn(score, &mut search, question, &answers)? {
                    Some(threshold) => found[which] = threshold,
                    None => open.push(Open(which, score, search)),
                }
            }
            open.reverse();
        }
        Ok(())
    }

    /// Passes the answers of the tiles to a search. Once it is done, returns which elements it found.
    fn learn<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        search: &mut Search,
        question: &Question,
        answers: &[Answer],
    ) -> Result<Option<Threshold>> {
        let pivots = &question.pivots;
        let above: [usize; PIVOTS] = std::array::from_fn(|p| answers.iter().map(|answer| answer.above[p]).sum());
        let all = || answers.iter().flat_map(|answer| &answer.keys).copied().collect();
        let keys = (!question.is_full()).then(all);
        let learned = search.learn(pivots, &above, keys).map_err(|Inconsistent| self.changed(score))?;
        let Some((key, equal)) = learned else { return Ok(None) };
        let of_tile = |Answer { above, keys }: &Answer| {
            if is_pair(pivots) {
                return above[pivots.len() - 2] - above[pivots.len() - 1];
            }
            keys.iter().filter(|other| **other == key).count()
        };
        let equals: Vec<usize> = answers.iter().map(of_tile).collect();
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

    /// Answers all questions for one tile.
    fn ask<S: Score<F::Real, M>, const M: usize>(
        &self,
        asked: &[(&S, Question)],
        tile: Range<usize>,
    ) -> Result<Vec<Answer>> {
        let reads: Vec<[usize; M]> = asked.iter().map(|(score, _)| score.reads()).collect();
        let chosen = union(reads.as_flattened());
        let mut answers: Vec<Answer> = asked.iter().map(|_| Answer::default()).collect();
        self.strips(&chosen, tile, 2 * TURN, |_, inputs| {
            let (mut left, mut of_scores) = (&mut answers[..], Vec::new());
            for questions in asked.chunk_by(|(a, _), (b, _)| std::ptr::eq(*a, *b)) {
                let (score, _) = questions[0];
                let x = score.reads().map(|read| inputs[chosen.partition_point(|k| *k < read)]);
                let (answers, others) = std::mem::take(&mut left).split_at_mut(questions.len());
                left = others;
                of_scores.push(Asked { score, x, questions, answers });
            }
            self.settings.simd.run(Count::<F, S, M>(&mut of_scores, PhantomData));
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
                self.settings.simd.run(Keys::<F, S, M> { score, x, found: &mut keys, format: PhantomData });
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
                let equal = equal::<F, S, M>(self.settings.simd, score, x, key);
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
