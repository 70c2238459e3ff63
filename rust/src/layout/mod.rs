//! Chooses where in an output file each tensor is, after the header.
pub mod safetensors;
