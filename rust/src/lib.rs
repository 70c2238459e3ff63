//! The engine of `mol`: one merge, streamed from mapped inputs to a new checkpoint in bounded memory.
//!
//! The path of a merge: [`plan`] is the JSON contract with Python; [`shard`] maps the input files and checks their
//! headers; [`preflight`] checks what can be checked before a byte is written; [`execute`] hands tensors to a pool,
//! [`run`] holds what they share, and [`job`] makes a tensor's tiles: a [`source`] lends elements, [`sweep`] answers what a
//! method asks of all of them, and one of the [`methods`] combines them in [`lanes`]; [`writer`] puts the tiles at their offsets; [`journal`] remembers
//! what is finished; [`lock`] keeps the place for one process; [`commit`] renames it.
pub mod audit;
pub mod commit;
pub mod crc;
pub mod draw;
pub mod dtype;
pub mod error;
pub mod execute;
pub mod job;
pub mod journal;
pub mod lanes;
pub mod lock;
pub mod methods;
pub mod plan;
pub mod preflight;
#[cfg(feature = "python")]
mod python;
pub mod real;
pub mod run;
pub mod shard;
pub mod simd;
pub mod source;
pub mod sweep;
pub mod watch;
pub mod writer;
