//! The engine of `mol`: one merge, streamed from mapped inputs to a new checkpoint in bounded memory.
//!
//! The path of a merge: [`plan`] is the JSON contract with Python; [`shard`] maps the input files and checks their
//! headers; [`execute`] hands tiles of tensors to a pool; [`stream`] gives a kernel the elements of its sources, direct
//! or through strips; [`kernels`] combine them; [`writer`] puts the tiles at their offsets, keeps the journal and commits.
pub mod audit;
pub mod crc;
pub mod dtype;
pub mod error;
pub mod execute;
pub mod journal;
pub mod kernels;
pub mod passes;
pub mod plan;
#[cfg(feature = "python")]
mod python;
pub mod real;
pub mod shard;
pub mod simd;
pub mod stream;
pub mod writer;
