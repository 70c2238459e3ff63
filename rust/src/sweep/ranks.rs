//! The ranks of elements by their score within their row, and which elements survive by it: one bit each.
use super::count::gather;
use super::select::Score;
use crate::error::{Error, Result};
use crate::lanes::{At, Lanes};
use crate::real::Real;
use crate::simd::Simd;
use std::cell::RefCell;

/// Bits per digit of a key, and the number of values of a digit.
const DIGIT: u32 = 11;
const VALUES: usize = 1 << DIGIT;
/// Number of elements from which counting digits is faster than comparing keys.
const MANY: usize = 512;
/// Bytes after the last bit, so that lanes can load theirs as one word.
const WORD: usize = size_of::<u64>();

/// One bit per element of a range.
pub struct Bits {
    first: usize,
    bits: Vec<u8>,
}

impl Bits {
    /// Creates the bits of `elements` elements from `first` on, none of them set.
    pub fn new(first: usize, elements: usize) -> Self {
        Self { first, bits: vec![0; Self::bytes(elements)] }
    }

    /// Returns the size for a number of elements, in bytes.
    pub fn bytes(elements: usize) -> usize {
        elements.div_ceil(8) + WORD
    }

    /// Sets the bit of an element if it survives.
    pub fn set(&mut self, element: usize, survives: bool) {
        let bit = element - self.first;
        self.bits[bit / 8] |= u8::from(survives) << (bit % 8);
    }

    /// Returns the bits of some lanes.
    #[inline(always)]
    pub fn lanes<const N: usize>(&self, at: At) -> [bool; N] {
        let (mut word, bit) = ([0; WORD], at.first - self.first);
        word.copy_from_slice(&self.bits[bit / 8..bit / 8 + WORD]);
        let word = u64::from_le_bytes(word) >> (bit % 8);
        let mut set = [false; N];
        for j in 0..N {
            set[j] = (word >> (j * at.step)) & 1 == 1;
        }
        set
    }
}

/// Refuses rows that are too long.
pub fn sortable(columns: usize) -> Result<()> {
    match u32::try_from(columns) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Merge(format!("a row of {columns} elements is too long to be sorted"))),
    }
}

/// Returns the bytes that [`by_rank`] holds for a row.
pub fn held(columns: usize) -> usize {
    columns.saturating_mul(size_of::<i64>() + 2 * size_of::<u32>()) + VALUES * size_of::<u32>()
}

thread_local! {
    /// Buffers in which this thread sorts its next row.
    static ROW: RefCell<Row> = const { RefCell::new(Row { keys: Vec::new(), order: Vec::new(), next: Vec::new() }) };
}

/// Buffers for sorting one row.
struct Row {
    keys: Vec<i64>,
    order: Vec<u32>,
    next: Vec<u32>,
}

/// Calls `take` with the columns of a row from largest to smallest score; of equal scores the lowest column comes first. A
/// row has less than 2^32 elements.
pub fn by_rank<F: Lanes, S: Score<F::Real, M>, const M: usize>(
    simd: Simd,
    score: &S,
    x: [&[u8]; M],
    take: impl FnOnce(&[u32]),
) {
    ROW.with_borrow_mut(|row| {
        let columns = x[0].len() / F::BYTES;
        row.keys.clear();
        gather::<F, S, M>(simd, score, x, -1, F::Real::TOP, &mut row.keys);
        // The one NaN whose key is the top is not gathered.
        row.keys.resize(columns, F::Real::TOP);
        row.sort();
        take(&row.order);
    });
}

impl Row {
    /// Sorts the columns by their keys.
    fn sort(&mut self) {
        self.order.clear();
        self.order.extend(0..self.keys.len() as u32);
        if self.keys.len() < MANY {
            let keys = &self.keys;
            self.order.sort_by_key(|column| std::cmp::Reverse(keys[*column as usize]));
        } else {
            self.by_digits();
        }
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
