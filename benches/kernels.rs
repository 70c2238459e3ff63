//! Kernels on tiles in cache, in bytes per second, per method, format and instruction set.
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mol_merge::dtype::{BF16, F16, F32, Float, Format, Halves, WideF32, transcode};
use mol_merge::kernels::linear::Linear;
use mol_merge::kernels::slerp::Products;
use mol_merge::kernels::task_arithmetic::TaskArithmetic;
use mol_merge::kernels::ties::{MajoritySign, Ties};
use mol_merge::kernels::{Kernel, select};
use mol_merge::real::Real;
use mol_merge::simd::Simd;
use std::hint::black_box;

const COUNT: usize = 1 << 15;

/// Values of a weight matrix: a fixed hash of the index, in [-0.05, 0.05).
fn values(seed: u32) -> Vec<u8> {
    let value = |i: u32| {
        (((i ^ seed).wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    };
    (0..COUNT as u32)
        .flat_map(|i| value(i).to_le_bytes())
        .collect()
}

fn method<F: Format>(
    c: &mut Criterion,
    format: &str,
    name: &str,
    inputs: usize,
    kernel: &Kernel<F::Real>,
) {
    let mut group = c.benchmark_group(format!("{name} {format}"));
    let data: Vec<Vec<u8>> = (0..inputs as u32)
        .map(|seed| {
            let mut bytes = vec![0; COUNT * F::BYTES];
            transcode(
                Simd::detect(),
                Float::F32,
                &values(seed),
                F::FLOAT,
                &mut bytes,
            );
            bytes
        })
        .collect();
    let inputs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut output = vec![0; COUNT * F::BYTES];
    group.throughput(Throughput::Bytes((COUNT * F::BYTES * inputs.len()) as u64));
    for level in ["off", "avx2", "avx512"] {
        let Ok(simd) = Simd::parse(level) else {
            continue;
        };
        group.bench_function(BenchmarkId::from_parameter(level), |b| {
            b.iter(|| kernel.apply::<F>(simd, black_box(&inputs), &mut output));
        });
        if name == "ties" {
            let threshold = [F::Real::from_f64(0.02).key().into()];
            group.bench_function(BenchmarkId::new("count", level), |b| {
                b.iter(|| {
                    select::count::<F>(simd, black_box(inputs[0]), black_box(inputs[1]), &threshold)
                });
            });
        }
        if name == "linear" {
            group.bench_function(BenchmarkId::new("products", level), |b| {
                b.iter(|| {
                    let mut products = Products::default();
                    products.add::<F>(simd, black_box(inputs[0]), black_box(inputs[1]));
                    products.totals()
                });
            });
        }
    }
}

fn formats<F: Format>(c: &mut Criterion, format: &str) {
    let threshold: i64 = F::Real::from_f64(0.02).key().into();
    let ties = Ties::new(&[0.5; 3], &[1.0; 3], true, 1.0, MajoritySign::Total)
        .with_thresholds([threshold; 3].into_iter());
    method::<F>(
        c,
        format,
        "linear",
        2,
        &Kernel::Linear(Linear::new(&[0.5, 0.5], true)),
    );
    method::<F>(
        c,
        format,
        "task_arithmetic",
        4,
        &Kernel::TaskArithmetic(TaskArithmetic::new(&[0.5; 3], false, 1.0)),
    );
    method::<F>(c, format, "ties", 4, &Kernel::Ties(ties));
}

fn kernels(c: &mut Criterion) {
    formats::<Halves<BF16>>(c, "bf16");
    formats::<Halves<F16>>(c, "f16");
    formats::<F32>(c, "f32");
    formats::<WideF32>(c, "f32 in f64");
}

criterion_group!(benches, kernels);
criterion_main!(benches);
