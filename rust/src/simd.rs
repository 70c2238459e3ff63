//! Run-time choice of the instruction set, and the floating-point mode of a thread. One of the two modules with
//! `unsafe`.
#![allow(unsafe_code)]

use crate::error::{Error, Result};

/// An instruction set level that this processor has. Every level gives the same bytes: no operation is fused or
/// reordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Simd(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// What the crate is compiled for.
    Baseline,
    /// 256-bit vectors.
    Avx2,
    /// 512-bit vectors and masks.
    Avx512,
}

/// Work that is compiled once per level. `run` must be `#[inline(always)]`.
pub trait Task {
    /// The result.
    type Output;
    /// Does the work.
    fn run(self) -> Self::Output;
}

impl Simd {
    /// Returns the highest level that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                return Self(Level::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Self(Level::Avx2);
            }
        }
        Self(Level::Baseline)
    }

    /// Parses `auto`, `off`, `avx2` or `avx512`; refuses a level that this processor lacks.
    pub fn parse(text: &str) -> Result<Self> {
        let level = match text {
            "auto" => Self::detect(),
            "off" => Self(Level::Baseline),
            "avx2" => Self(Level::Avx2),
            "avx512" => Self(Level::Avx512),
            _ => return Err(Error::Merge(format!("simd `{text}` is not one of auto, off, avx2, avx512"))),
        };
        if level > Self::detect() {
            return Err(Error::Merge(format!("this processor has no {text}; use simd `auto`")));
        }
        Ok(level)
    }

    /// Runs a task with the code compiled for this level.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            // SAFETY: only `detect` and `parse` create this `Simd`, after finding all the features that `avx512`
            // enables.
            Level::Avx512 => return unsafe { avx512(task) },
            // SAFETY: as above, for `avx2`.
            Level::Avx2 => return unsafe { avx2(task) },
            Level::Baseline => {}
        }
        task.run()
    }
}

/// Sets the thread's floating-point mode to round to nearest even and keep subnormals, so that bytes do not depend on
/// the caller. A thread inherits the mode of the one that starts it, and that one may flush subnormals, as after
/// `torch.set_flush_denormal`.
pub fn default_float_mode() {
    #[cfg(target_arch = "x86_64")]
    {
        // All exceptions masked, no flushing.
        let mode: u32 = 0x1f80;
        // SAFETY: loads the register from four initialised bytes, with the state that the compiler assumes for every
        // thread. No safe function sets it.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, readonly)) }
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: as above; zero is valid for every bit of the register.
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) 0_u64, options(nostack, nomem)) }
    }
}

/// Bytes that a loop processes between two calls of [`prefetch`].
pub const PREFETCH: usize = 512;

/// Inputs up to which it pays to [`prefetch`]. The blocks ahead of more of them push each other out of the first-level
/// cache: the mean of 20 models took 1.75 s of CPU time with it, and 1.2 without.
pub const STREAMS: usize = 12;

/// Prefetches the block that lies two kilobytes ahead of `bytes[start..]`; a hint that changes no result. The hardware
/// prefetcher stops at page boundaries, which mapped files have many of: this took slerp's sweep from 0.78 to 0.3 s of
/// CPU time.
#[inline(always)]
pub fn prefetch(bytes: &[u8], start: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in (0..PREFETCH).step_by(64) {
            let address = bytes.as_ptr().wrapping_add(start + 2048 + line);
            // SAFETY: a prefetch has no architectural effect and faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }
}

/// Returns which bytes, 0 or 1, are set, as bits.
#[inline(always)]
pub fn flagged(bytes: [u8; 16]) -> u16 {
    let [low, high] = [0, 8].map(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[i + j])));
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_movemask_epi8, _mm_set_epi64x};
        // SAFETY: every processor of this architecture has these instructions. The second reads the upper bit of bytes.
        unsafe { _mm_movemask_epi8(_mm_set_epi64x((high << 7) as i64, (low << 7) as i64)) as u16 }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        // The product moves bit 0 of byte i to bit i of the upper byte.
        let [low, high] = [low, high].map(|eight| (eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8);
        u16::from_le_bytes([low, high])
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<T: Task>(task: T) -> T::Output {
    task.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<T: Task>(task: T) -> T::Output {
    task.run()
}
