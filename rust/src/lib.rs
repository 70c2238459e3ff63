//! The engine of `mol`: one merge, streamed from mapped inputs to a new checkpoint in bounded memory.
//!
//! The path of a merge: [`plan`] is the JSON contract with Python; [`shard`] maps the input files and checks their
//! headers; [`preflight`] checks what can be checked before a byte is written; [`execute`] hands tensors to a pool,
//! [`run`] holds what they share, and `job` a tensor's tiles; [`stream`] gives a kernel the elements of its sources,
//! direct or through strips; [`kernels`] combine them; [`writer`] puts the tiles at their offsets; [`journal`] remembers
//! what is finished; [`lock`] keeps the place for one process; [`commit`] renames it.
pub mod audit;
pub mod commit;
pub mod crc;
pub mod dtype;
pub mod error;
pub mod execute;
mod job;
pub mod journal;
pub mod kernels;
pub mod lock;
pub mod passes;
pub mod plan;
pub mod preflight;
#[cfg(feature = "python")]
mod python;
pub mod real;
pub mod run;
pub mod shard;
pub mod simd;
pub mod source;
pub mod stream;
pub mod watch;
pub mod writer;
