//! The engine of `mol`: one merge, streamed from its inputs to a new checkpoint in bounded memory.
//!
//! The path of a merge: [`plan`] is the JSON contract with Python; a [`container`] is an input file as a table of tensors,
//! whose bytes a [`store`] lends; [`run`] checks what can be checked before a byte is written, decides which task runs when,
//! puts tiles at their offsets and remembers what is finished; [`job`] makes a tensor's tiles: a [`source`] lends elements,
//! [`sweep`] answers what a method asks of all of them, one of the [`methods`] combines them in [`lanes`], and [`encode`]
//! makes bytes of what comes out; [`layout`] says where each tensor of an output lies.
pub mod audit;
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
pub mod watch;
