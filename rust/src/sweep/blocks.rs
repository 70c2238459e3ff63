//! The elements of the largest scores in each block of a row.
use super::ranks::{rank, score};
use super::select::Score;
use crate::bits::{Bits, WORD, pack};
use crate::lanes::{At, Lanes, W};
use crate::real::Real;
use crate::simd::{Simd, Task};
use std::marker::PhantomData;

/// Elements of a block up to which ranks are found one by one.
const FEW: usize = 32;

/// Returns the bytes that [`Blocks`] of rows hold.
pub fn held(columns: usize) -> usize {
    columns.saturating_add(WORD).saturating_mul(2 * size_of::<i64>() + 1)
}

/// A row of which the `n` largest of every `m` elements are chosen; zeros never are, and the last block may be smaller.
/// Elements that are taken are chosen last: only where a block has too few others.
pub struct Row<'a, S, const M: usize> {
    /// Ranks the elements, of equal scores the lowest column first.
    pub score: &'a S,
    /// The elements that the score reads.
    pub x: [&'a [u8]; M],
    /// The element in the first column.
    pub first: usize,
    /// Elements chosen of a block.
    pub n: usize,
    /// Elements of a block, at least one.
    pub m: usize,
}

/// Room to choose from the blocks of a row.
#[derive(Default)]
pub struct Blocks<R: Real> {
    keys: Vec<R::Key>,
    /// The keys of what is taken, zero for the others.
    shared: Vec<R::Key>,
    chosen: Vec<bool>,
}

impl<R: Real> Blocks<R> {
    /// Sets the bits of what is chosen of a row.
    pub fn mark<F: Lanes<Real = R>, S: Score<R, M>, const M: usize>(
        &mut self,
        simd: Simd,
        row: &Row<S, M>,
        taken: &[Option<Bits>],
        bits: &mut Bits,
    ) {
        simd.run(Mark::<F, S, M> { blocks: self, row, taken, bits, format: PhantomData });
    }
}

/// See [`Blocks::mark`].
struct Mark<'a, F: Lanes, S, const M: usize> {
    blocks: &'a mut Blocks<F::Real>,
    row: &'a Row<'a, S, M>,
    taken: &'a [Option<Bits>],
    bits: &'a mut Bits,
    format: PhantomData<F>,
}

impl<F: Lanes, S: Score<F::Real, M>, const M: usize> Task for Mark<'_, F, S, M> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { blocks: Blocks { keys, shared, chosen }, row, taken, bits, .. } = self;
        let Row { score: by, x, first, n, m } = *row;
        score::<F, S, M>(by, x, keys);
        let columns = keys.len();
        let zero = <F::Real as Real>::Key::default();
        keys.resize(columns.next_multiple_of(W), zero);
        shared.clear();
        shared.resize(keys.len(), zero);
        for taken in taken.iter().flatten() {
            let shared = shared.as_chunks_mut::<W>().0;
            for (i, (keys, shared)) in keys.as_chunks_mut::<W>().0.iter_mut().zip(shared).enumerate() {
                let taken = taken.lanes::<W>(At { first: first + i * W, step: 1 });
                for j in 0..W {
                    shared[j] = if taken[j] && keys[j] > zero { keys[j] } else { shared[j] };
                    keys[j] = if taken[j] { zero } else { keys[j] };
                }
            }
        }
        chosen.clear();
        chosen.resize(columns.next_multiple_of(WORD), false);
        let blocks = keys[..columns].chunks(m).zip(shared[..columns].chunks(m));
        for ((keys, shared), chosen) in blocks.zip(chosen.chunks_mut(m)) {
            choose::<F::Real>(keys, n, chosen);
            let left = n - chosen.iter().filter(|chosen| **chosen).count();
            if left > 0 && shared.iter().any(|key| *key > zero) {
                choose::<F::Real>(shared, left, chosen);
            }
        }
        for (i, chosen) in chosen.as_chunks::<WORD>().0.iter().enumerate() {
            bits.set(first + i * WORD, pack(*chosen));
        }
    }
}

/// Chooses the `n` largest keys that are not zero, of equal ones the first, too.
#[inline(always)]
fn choose<R: Real>(keys: &[R::Key], n: usize, chosen: &mut [bool]) {
    if keys.len() <= FEW {
        for (i, key) in keys.iter().enumerate() {
            chosen[i] |= *key > R::Key::default() && (rank(keys, i) as usize) < n;
        }
        return;
    }
    let above = |key: i64| {
        let key = R::narrow_key(key);
        keys.iter().map(|other| u32::from(*other > key)).sum::<u32>() as usize
    };
    // More than `n` are above `low`; `few` are above `high`, no more than `n`.
    let (mut low, mut high, mut few) = (0, 0, above(0));
    if few > n {
        (high, few) = (keys.iter().copied().max().map_or(0, Into::into), 0);
        while high - low > 1 && few < n {
            let middle = i64::midpoint(low, high);
            let count = above(middle);
            if count > n {
                low = middle;
            } else {
                (high, few) = (middle, count);
            }
        }
    }
    let least = R::narrow_key(high);
    for (chosen, key) in chosen.iter_mut().zip(keys) {
        *chosen |= *key > least;
    }
    if high > 0 && few < n {
        let equal = keys.iter().zip(chosen).filter(|(key, _)| **key == least);
        equal.take(n - few).for_each(|(_, chosen)| *chosen = true);
    }
}
