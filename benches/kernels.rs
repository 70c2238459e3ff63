//! Methods on tiles in cache, in bytes per second, per format and instruction set: `run` is the kernel, `prepare` the
//! sweeps before it.
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mol_merge::dtype::{BF16, F16, F32, Float, Halves, WideF32, transcode};
use mol_merge::error::Result;
use mol_merge::lanes::Lanes;
use mol_merge::methods::Method;
use mol_merge::simd::Simd;
use mol_merge::source::{Settings, Slot, Source, Tensor};
use mol_merge::sweep::Sweep;
use mol_merge::watch::Watch;
use std::hint::black_box;
use std::ops::Range;

/// More than a search collects at once, and small enough for the second-level cache with a few inputs.
const COUNT: usize = 1 << 18;
/// Elements of the kernels' tile.
const TILE: usize = 1 << 15;

/// Values like those of a weight matrix: a fixed hash of the index, in [-0.05, 0.05).
struct Values {
    float: Float,
    bytes: Vec<u8>,
}

impl Values {
    fn new(seed: u32, float: Float) -> Self {
        let value = |i: u32| {
            (((i ^ seed).wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.1
        };
        let values: Vec<u8> = (0..COUNT as u32)
            .flat_map(|i| value(i).to_le_bytes())
            .collect();
        let mut bytes = vec![0; COUNT * float.bytes()];
        transcode(Simd::detect(), Float::F32, &values, float, &mut bytes);
        Self { float, bytes }
    }
}

impl Source for Values {
    fn float(&self) -> Float {
        self.float
    }
    fn shape(&self) -> (usize, usize) {
        (COUNT >> 10, 1 << 10)
    }
    fn ready(&self) -> bool {
        true
    }
    fn lease<'s>(&'s self, _: Simd, at: Range<usize>, _: &'s mut Slot) -> Result<&'s [u8]> {
        let size = self.float.bytes();
        Ok(&self.bytes[at.start * size..at.end * size])
    }
    fn leaves<'s>(&'s self, _: &mut dyn FnMut(&'s Tensor)) {}
}

fn method<F: Lanes>(c: &mut Criterion, format: &str, name: &str, inputs: usize, json: &str) {
    let method: Method = serde_json::from_str(json).expect("a method");
    if !F::PLAIN && !method.direct() || F::WIDE && !method.wide() {
        return;
    }
    let sources: Vec<Box<dyn Source>> = (0..inputs as u32)
        .map(|seed| Box::new(Values::new(seed, F::FLOAT)) as Box<dyn Source>)
        .collect();
    let mut output = vec![0; TILE * F::BYTES];
    let watch = Watch::default();
    let mut group = c.benchmark_group(format!("{name} {format}"));
    for level in ["off", "avx2", "avx512"] {
        let Ok(simd) = Simd::parse(level) else {
            continue;
        };
        let settings = Settings {
            tile: COUNT,
            simd,
            watch: &watch,
            key: [0; 2],
        };
        let sweep = Sweep::<F>::new(&sources, settings);
        let kernel = method.prepare(&sweep).expect("prepared");
        let mut slots: Vec<Slot> = sources.iter().map(|_| Slot::default()).collect();
        let leases = sources.iter().zip(&mut slots);
        let tiles: Vec<&[u8]> = leases
            .map(|(source, slot)| source.lease(simd, 0..TILE, slot).expect("lent"))
            .collect();
        group.throughput(Throughput::Bytes((TILE * F::BYTES * inputs) as u64));
        group.bench_function(BenchmarkId::new("run", level), |b| {
            b.iter(|| kernel.run(simd, 0..TILE, black_box(&tiles), &mut output));
        });
        if method.sweeps() > 1 {
            group.throughput(Throughput::Bytes((COUNT * F::BYTES * inputs) as u64));
            group.bench_function(BenchmarkId::new("prepare", level), |b| {
                b.iter(|| method.prepare(black_box(&sweep)).is_ok());
            });
        }
    }
}

fn ties(models: usize, rescale: bool, elect: &str) -> String {
    let list = |x: &str| vec![x; models].join(",");
    format!(
        r#"{{"ties": {{"weights": [{}], "densities": [{}], "normalize": true, "rescale": {rescale}, "lambda": 1.0,
        "majority_sign_method": "{elect}"}}}}"#,
        list("0.5"),
        list("0.4")
    )
}

/// A method that keeps some elements of three task vectors, with parameters of its own.
fn thinned(name: &str, own: &str) -> String {
    format!(
        r#"{{"{name}": {{"weights": [0.5, 0.5, 0.5], "densities": [0.5, 0.5, 0.5], {own}, "normalize": true,
        "rescale": true, "lambda": 1.0}}}}"#
    )
}

fn formats<F: Lanes>(c: &mut Criterion, format: &str) {
    let linear = r#"{"linear": {"weights": [0.5, 0.5], "normalize": true}}"#;
    let task_arithmetic =
        r#"{"task_arithmetic": {"weights": [0.5, 0.5, 0.5], "normalize": false, "lambda": 1.0}}"#;
    method::<F>(c, format, "linear", 2, linear);
    method::<F>(c, format, "slerp", 2, r#"{"slerp": {"t": 0.3}}"#);
    method::<F>(c, format, "task_arithmetic", 4, task_arithmetic);
    method::<F>(c, format, "ties", 4, &ties(3, false, "total"));
    method::<F>(c, format, "ties of 8", 8, &ties(7, false, "total"));
    method::<F>(c, format, "ties by count", 4, &ties(3, false, "count"));
    method::<F>(c, format, "ties rescaled", 4, &ties(3, true, "total"));
    let (models, epsilons) = (r#""models": [0, 1, 2]"#, r#""epsilons": [0.1, 0.1, 0.1]"#);
    method::<F>(c, format, "dare_ties", 4, &thinned("dare_ties", models));
    method::<F>(
        c,
        format,
        "della",
        4,
        &thinned("della", &format!("{models}, {epsilons}")),
    );
    let gammas = r#""gammas": [0.01, 0.01, 0.01]"#;
    method::<F>(c, format, "breadcrumbs", 4, &thinned("breadcrumbs", gammas));
    method::<F>(c, format, "sce", 4, r#"{"sce": {"select_topk": 0.5}}"#);
}

fn kernels(c: &mut Criterion) {
    formats::<Halves<BF16>>(c, "bf16");
    formats::<Halves<F16>>(c, "f16");
    formats::<F32>(c, "f32");
    formats::<WideF32>(c, "f32 in f64");
}

criterion_group!(benches, kernels);
criterion_main!(benches);
