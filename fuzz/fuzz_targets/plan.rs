//! Any bytes as a plan: refused with a message or accepted; an accepted plan has a digest, and survives a round trip.
#![no_main]
use libfuzzer_sys::fuzz_target;
use mol_merge::container::Header;
use mol_merge::plan::Plan;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// The two files whose tensors the contract's fixture names.
static HEADERS: LazyLock<Vec<Arc<Header>>> = LazyLock::new(|| {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/header");
    let read = |name| Arc::new(Header::read(&seeds.join(name)).expect("a SafeTensors file"));
    ["first.safetensors", "second.safetensors"].map(read).into()
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(plan) = Plan::parse(text) else { return };
    let _fault = plan.check(&HEADERS);
    let digest = plan.digest().expect("a plan has a digest");
    let again = serde_json::to_string(&plan).expect("a plan is JSON");
    let again = Plan::parse(&again).expect("a plan that was written is read").digest().expect("and has a digest");
    assert_eq!(digest, again, "the same work");
});
