//! Where each tensor of an output file lies, and the bytes before the first.
pub mod safetensors;
