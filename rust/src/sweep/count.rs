//! Counts and collects the keys of a strip of a tensor.
use super::search::{COLLECT, PIVOTS, is_pair};
use super::select::Score;
use crate::bits::{WORD, pack};
use crate::lanes::{Lanes, W};
use crate::real::Real;
use crate::simd::{PREFETCH, Simd, Task, prefetch};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest number of keys that a turn has.
const KEYS: usize = PREFETCH / 2;

/// Returns the key of element `i`.
#[inline(always)]
pub(super) fn key_of<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    score: &S,
    x: [&[u8]; M],
    i: usize,
) -> <F::Real as Real>::Key {
    score.keys::<1>(x.map(|x| [F::get(x, i)]))[0]
}

/// Computes keys, a multiple of two vectors of them. Where two elements share a word, those in the lower halves come
/// first.
#[inline(always)]
fn keys_of<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    score: &S,
    x: [&[u8]; M],
    keys: &mut [<F::Real as Real>::Key],
) {
    let [mut low, mut high] = [[[F::Real::default(); W]; M]; 2];
    for i in (0..keys.len()).step_by(2 * W) {
        for k in 0..M {
            [low[k], high[k]] = F::load(x[k], i);
        }
        let (first, second) = keys[i..i + 2 * W].split_at_mut(W);
        first.copy_from_slice(&score.keys::<W>(low));
        second.copy_from_slice(&score.keys::<W>(high));
    }
}

/// What a search requests of all tiles: see [`super::search::Search::pivots`].
pub(super) struct Question {
    pub pivots: Vec<i64>,
    /// The number of keys that all tiles have collected.
    collected: AtomicUsize,
}

impl Question {
    pub fn new(pivots: Vec<i64>) -> Self {
        Self { pivots, collected: AtomicUsize::new(0) }
    }

    /// Returns whether no more keys are collected, as all have been found to be too many.
    pub fn is_full(&self) -> bool {
        self.collected.load(Ordering::Relaxed) > COLLECT
    }
}

/// What one tile answers to a question.
#[derive(Default)]
pub(super) struct Answer {
    /// The number of keys above each pivot.
    pub above: [usize; PIVOTS],
    pub keys: Vec<i64>,
}

impl Answer {
    /// Answers for some more keys.
    // An `and` of conditions would be a branch.
    #[allow(clippy::needless_bitwise_bool)]
    #[inline(always)]
    fn add<R: Real>(&mut self, question: &Question, keys: &[R::Key]) {
        for (above, pivot) in self.above.iter_mut().zip(&question.pivots) {
            // Not in chunks of lanes: the compiler would gather across them.
            let (pivot, mut sum) = (R::narrow_key(*pivot), 0);
            for key in keys {
                sum += u32::from(*key > pivot);
            }
            *above += sum as usize;
        }
        let [.., low, high] = *question.pivots else { return };
        if is_pair(&question.pivots) || question.is_full() {
            return;
        }
        let ([low, high], before) = ([low, high].map(R::narrow_key), self.keys.len());
        let (words, rest) = keys.as_chunks::<WORD>();
        for keys in words {
            let mut between = [false; WORD];
            for j in 0..WORD {
                between[j] = (keys[j] > low) & (keys[j] <= high);
            }
            let mut word = pack(between);
            while word != 0 {
                self.keys.push(keys[word.trailing_zeros() as usize].into());
                word &= word - 1;
            }
        }
        for key in rest {
            if *key > low && *key <= high {
                self.keys.push((*key).into());
            }
        }
        question.collected.fetch_add(self.keys.len() - before, Ordering::Relaxed);
    }
}

/// The questions about one score of the elements of a strip.
pub(super) struct Asked<'a, S, const M: usize> {
    pub score: &'a S,
    pub x: [&'a [u8]; M],
    pub questions: &'a [(&'a S, Question)],
    pub answers: &'a mut [Answer],
}

impl<S, const M: usize> Asked<'_, S, M> {
    /// Returns the elements of a turn, and fetches those of the next.
    #[inline(always)]
    fn turn<F: Lanes>(&self, turn: &Range<usize>) -> [&[u8]; M] {
        for k in 0..M {
            prefetch(self.x[k], turn.start * F::BYTES);
        }
        self.x.map(|x| &x[turn.start * F::BYTES..turn.end * F::BYTES])
    }

    /// Returns the greater key of a pair, if that is all that is requested: then no key needs to be stored.
    #[inline(always)]
    fn pair(&self) -> Option<i64> {
        match self.questions {
            [(_, Question { pivots, .. })] if pivots.len() == 2 && is_pair(pivots) => Some(pivots[1]),
            _ => None,
        }
    }

    /// Answers all questions for some more keys.
    #[inline(always)]
    fn add<R: Real>(&mut self, keys: &[R::Key]) {
        for ((_, question), answer) in self.questions.iter().zip(&mut *self.answers) {
            answer.add::<R>(question, keys);
        }
    }

    /// Counts the keys above and equal to one, two vectors at a time.
    #[inline(always)]
    fn compare<F: Lanes>(&self, turn: &Range<usize>, key: i64, counts: &mut [[u32; W]; 2])
    where
        S: Score<F::Real, M>,
    {
        let (x, key, mut sums) = (self.turn::<F>(turn), F::Real::narrow_key(key), *counts);
        let [mut low, mut high] = [[[F::Real::default(); W]; M]; 2];
        for i in (0..turn.len()).step_by(2 * W) {
            for k in 0..M {
                [low[k], high[k]] = F::load(x[k], i);
            }
            let (low, high) = (self.score.keys::<W>(low), self.score.keys::<W>(high));
            for j in 0..W {
                sums[0][j] += u32::from(low[j] > key) + u32::from(high[j] > key);
                sums[1][j] += u32::from(low[j] == key) + u32::from(high[j] == key);
            }
        }
        *counts = sums;
    }
}

/// Answers for several scores in turns, so that memory reads of all of them overlap. Fewer than 2^32 elements.
pub(super) struct Count<'a, 'b, F, S, const M: usize>(pub &'a mut [Asked<'b, S, M>], pub PhantomData<F>);

impl<F: Lanes, S: Score<F::Real, M>, const M: usize> Task for Count<'_, '_, F, S, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let elements = self.0.first().map_or(0, |one| one.x[0].len() / F::BYTES);
        let whole = elements / (2 * W) * (2 * W);
        let mut keys = [<F::Real as Real>::Key::default(); KEYS];
        let mut counts = vec![[[0; W]; 2]; self.0.len()];
        for start in (0..whole).step_by(PREFETCH / F::BYTES) {
            let turn = start..whole.min(start + PREFETCH / F::BYTES);
            for (one, counts) in self.0.iter_mut().zip(&mut counts) {
                if let Some(key) = one.pair() {
                    one.compare::<F>(&turn, key, counts);
                } else {
                    let keys = &mut keys[..turn.len()];
                    keys_of::<F, S, M>(one.score, one.turn::<F>(&turn), keys);
                    one.add::<F::Real>(keys);
                }
            }
        }
        for (one, counts) in self.0.iter_mut().zip(&counts) {
            for i in whole..elements {
                keys[i - whole] = key_of::<F, S, M>(one.score, one.x, i);
            }
            one.add::<F::Real>(&keys[..elements - whole]);
            let [above, equal] = counts.map(|lanes| lanes.iter().sum::<u32>() as usize);
            one.answers[0].above[0] += above + equal;
            one.answers[0].above[1] += above;
        }
    }
}

/// Appends the keys of all elements.
pub(super) struct Keys<'a, F, S, const M: usize> {
    pub score: &'a S,
    pub x: [&'a [u8]; M],
    pub found: &'a mut Vec<i64>,
    pub format: PhantomData<F>,
}

impl<F: Lanes, S: Score<F::Real, M>, const M: usize> Task for Keys<'_, F, S, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let elements = self.x[0].len() / F::BYTES;
        let whole = elements / (2 * W) * (2 * W);
        let mut keys = [<F::Real as Real>::Key::default(); 2 * W];
        for i in (0..whole).step_by(2 * W) {
            keys_of::<F, S, M>(self.score, self.x.map(|x| &x[i * F::BYTES..]), &mut keys);
            self.found.extend(keys.map(Into::into));
        }
        for i in whole..elements {
            self.found.push(key_of::<F, S, M>(self.score, self.x, i).into());
        }
    }
}

/// Returns the number of elements whose key is a given one.
pub(super) fn equal<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    simd: Simd,
    score: &S,
    x: [&[u8]; M],
    key: i64,
) -> usize {
    let (questions, mut answers) = ([(score, Question::new(vec![key - 1, key]))], [Answer::default()]);
    let mut asked = [Asked { score, x, questions: &questions, answers: &mut answers }];
    simd.run(Count::<F, S, M>(&mut asked, PhantomData));
    answers[0].above[0] - answers[0].above[1]
}
