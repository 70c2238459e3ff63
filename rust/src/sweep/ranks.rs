//! Selection of elements by the rank of their score within their row. Each row is sorted once; one bit per element is kept.
use super::Sweep;
use super::count::gather;
use super::select::Score;
use crate::error::{Error, Result};
use crate::lanes::{At, Lanes};
use crate::real::Real;
use rayon::prelude::*;

/// Bits per digit of a key, and the number of values of a digit.
const DIGIT: u32 = 11;
const VALUES: usize = 1 << DIGIT;
/// Number of elements from which counting digits is faster than comparing keys.
const MANY: usize = 512;
/// Bytes after the last bit, so that lanes can load theirs as one word.
const WORD: usize = size_of::<u64>();

/// One bit per element.
pub struct Bits(Vec<u8>);

impl Bits {
    /// Returns the size for a number of elements, in bytes.
    pub fn bytes(elements: usize) -> usize {
        elements.div_ceil(8) + WORD
    }

    /// Returns the bits of some lanes.
    #[inline(always)]
    pub fn lanes<const N: usize>(&self, at: At) -> [bool; N] {
        let mut word = [0; WORD];
        word.copy_from_slice(&self.0[at.first / 8..at.first / 8 + WORD]);
        let word = u64::from_le_bytes(word) >> (at.first % 8);
        let mut set = [false; N];
        for j in 0..N {
            set[j] = (word >> (j * at.step)) & 1 == 1;
        }
        set
    }
}

/// Returns the bytes that [`Sweep::by_rank`] holds for a row, in addition to the bits.
pub fn held(columns: usize) -> usize {
    columns.saturating_mul(size_of::<i64>() + 2 * size_of::<u32>() + 1) + VALUES * size_of::<u32>()
}

/// Buffers for sorting one row.
#[derive(Default)]
struct Row {
    keys: Vec<i64>,
    order: Vec<u32>,
    next: Vec<u32>,
    survives: Vec<bool>,
}

impl<F: Lanes> Sweep<'_, F> {
    /// Calls `mark(first element, columns from largest to smallest score, survives)` for each row, and returns which
    /// elements survive. Of equal scores the lowest column comes first.
    pub fn by_rank<S: Score<F::Real, M>, const M: usize>(
        &self,
        score: &S,
        mark: impl Fn(usize, &[u32], &mut [bool]) + Sync,
    ) -> Result<Bits> {
        let mut bits = Bits(vec![0; Bits::bytes(self.len())]);
        if self.is_empty() {
            return Ok(bits);
        }
        if u32::try_from(self.columns).is_err() {
            return Err(Error::Merge(format!("a row of {} elements is too long to be sorted", self.columns)));
        }
        // So that each group of rows starts at a byte boundary.
        let rows = (self.settings.tile / self.columns).max(1).next_multiple_of(8);
        let of_rows = |row: &mut Row, (group, bits): (usize, &mut [u8])| {
            let first = group * rows;
            for index in first..self.rows.min(first + rows) {
                self.settings.watch.check()?;
                row.sort(self, score, index)?;
                mark(index * self.columns, &row.order, &mut row.survives);
                let from = (index - first) * self.columns;
                for (i, survives) in row.survives.iter().enumerate() {
                    bits[(from + i) / 8] |= u8::from(*survives) << ((from + i) % 8);
                }
            }
            Ok(())
        };
        let all = &mut bits.0[..self.len().div_ceil(8)];
        all.par_chunks_mut(rows * self.columns / 8).enumerate().try_for_each_init(Row::default, of_rows)?;
        Ok(bits)
    }
}

impl Row {
    /// Sorts the columns of a row.
    fn sort<F: Lanes, S: Score<F::Real, M>, const M: usize>(
        &mut self,
        sweep: &Sweep<F>,
        score: &S,
        row: usize,
    ) -> Result<()> {
        let columns = sweep.columns;
        self.keys.clear();
        sweep.scored(score, row * columns..(row + 1) * columns, |_, x| {
            gather::<F, S, M>(sweep.settings.simd, score, x, -1, F::Real::TOP, &mut self.keys);
        })?;
        // The one NaN whose key is the top is not gathered.
        self.keys.resize(columns, F::Real::TOP);
        self.survives.resize(columns, false);
        self.order.clear();
        self.order.extend(0..columns as u32);
        if columns < MANY {
            let keys = &self.keys;
            self.order.sort_by_key(|column| std::cmp::Reverse(keys[*column as usize]));
        } else {
            self.by_digits();
        }
        Ok(())
    }

    /// Sorts by digits, least significant first; digits that all keys share are skipped.
    fn by_digits(&mut self) {
        let (all, any) = self.keys.iter().fold((!0, 0), |(all, any), key| (all & key, any | key));
        let digit = |key: i64, shift: u32| VALUES - 1 - ((key >> shift) as usize & (VALUES - 1));
        self.next.resize(self.order.len(), 0);
        for shift in (0..i64::BITS).step_by(DIGIT as usize) {
            if digit(all, shift) == digit(any, shift) {
                continue;
            }
            let mut places = [0_u32; VALUES];
            self.keys.iter().for_each(|key| places[digit(*key, shift)] += 1);
            let mut before = 0;
            for place in &mut places {
                before += std::mem::replace(place, before);
            }
            for column in &self.order {
                let place = &mut places[digit(self.keys[*column as usize], shift)];
                self.next[*place as usize] = *column;
                *place += 1;
            }
            std::mem::swap(&mut self.order, &mut self.next);
        }
    }
}
