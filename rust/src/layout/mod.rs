//! Places each tensor in an output file, after the header.
pub mod safetensors;
