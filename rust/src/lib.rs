//! The engine of `mol`: one merge, streamed from its inputs to a new checkpoint in bounded memory.
//!
//! The path of a merge: [`plan`] parses and checks the JSON contract with Python; a [`container`] is an input file as a
//! table of tensors, whose bytes a [`store`] provides; [`run`] checks everything that can be checked before writing,
//! schedules tasks, writes tiles at their offsets and records what is finished; [`job`] computes one tensor: a
//! [`source`] provides elements, [`sweep`] computes statistics of the whole tensor, one of the [`methods`] combines the
//! elements in [`lanes`], and [`encode`] converts results to bytes; [`layout`] places each tensor in an output file.
//! Apart from it, [`vocabulary`] reads the tokens of a model.
pub mod audit;
pub mod bits;
pub mod codes;
pub mod container;
pub mod crc;
pub mod draw;
pub mod dtype;
pub mod encode;
pub mod error;
pub mod job;
pub mod lanes;
pub mod layout;
pub mod math;
pub mod methods;
pub mod plan;
#[cfg(feature = "python")]
mod python;
pub mod real;
pub mod run;
pub mod simd;
pub mod source;
pub mod store;
pub mod sweep;
pub mod vocabulary;
pub mod watch;
