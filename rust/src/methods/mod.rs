//! The methods: one file each, and one word each in the list below. A method knows no files, threads or tensor names.
pub mod arcee_fusion;
pub mod breadcrumbs;
pub mod cabs;
pub mod consensus;
pub mod copy;
pub mod dare;
pub mod della;
pub mod delta;
pub mod karcher;
pub mod linear;
pub mod localize_and_stitch;
pub mod magmax;
pub mod marked;
pub mod mergekit;
pub mod model_stock;
pub mod multislerp;
pub mod nearswap;
pub mod nuslerp;
pub mod pcb;
pub mod ram;
pub mod ramplus_tl;
pub mod ranked;
pub mod scale;
pub mod sce;
pub mod slerp;
pub mod task_arithmetic;
pub mod ties;
pub mod weighted;
mod words;

use crate::error::{Error, Result};
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;
use serde::{Deserialize, Serialize};
use std::result::Result as Checked;
use words::words;

/// A method of the plan, with its parameters for one tensor.
pub trait Merge {
    /// How often the sources are read, not counting extra sweeps of a search.
    const SWEEPS: u64;
    /// Whether it is compiled for 16-bit inputs; otherwise they are converted to f32 strips, which costs a third more
    /// time and saves much code.
    const DIRECT: bool = false;
    /// Whether f32 results are computed in f64, so that they are rounded once.
    const WIDE: bool = true;

    /// Returns `SWEEPS`; a method that runs another one returns that one's.
    fn sweeps(&self) -> u64 {
        Self::SWEEPS
    }

    /// Checks the parameters and the number of sources.
    fn check(&self, sources: usize) -> Checked<(), String>;

    /// Returns the maximum heap, in bytes, that a task holds in addition to its strips.
    fn resident(&self, _rows: usize, _columns: usize, _sources: usize) -> usize {
        0
    }

    /// Computes the statistics it needs of the whole tensor, and returns the kernel.
    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>>;
}

macro_rules! methods {
    ($($name:ident = $method:ty),+ $(,)?) => {
        /// A method with all parameters resolved: `{"slerp": {"t": 0.3}}`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case", deny_unknown_fields)]
        pub enum Method {
            $(#[doc = concat!("See [`", stringify!($method), "`].")] $name($method)),+
        }

        impl Method {
            /// Lists every method: its name, the names of its parameters, and [`Merge::SWEEPS`].
            pub fn all() -> impl Iterator<Item = (&'static str, &'static [&'static str], u64)> {
                let of_each = [$((words::<$method>(), <$method>::SWEEPS)),+];
                words::<Self>().iter().zip(of_each).map(|(name, (numbers, sweeps))| (*name, numbers, sweeps))
            }

            /// See [`Merge::check`].
            pub fn check(&self, sources: usize) -> Checked<(), String> {
                match self { $(Self::$name(method) => method.check(sources)),+ }
            }

            /// See [`Merge::sweeps`].
            pub fn sweeps(&self) -> u64 {
                match self { $(Self::$name(method) => method.sweeps()),+ }
            }

            /// See [`Merge::DIRECT`].
            pub fn direct(&self) -> bool {
                match self { $(Self::$name(_) => <$method>::DIRECT),+ }
            }

            /// See [`Merge::WIDE`].
            pub fn wide(&self) -> bool {
                match self { $(Self::$name(_) => <$method>::WIDE),+ }
            }

            /// See [`Merge::resident`].
            pub fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
                match self { $(Self::$name(method) => method.resident(rows, columns, sources)),+ }
            }

            /// See [`Merge::prepare`].
            pub fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
                match self {
                    $(Self::$name(method) => {
                        // Constants: methods that are not compiled for a format take no code.
                        if F::PLAIN || <$method>::DIRECT {
                            if !F::WIDE || <$method>::WIDE {
                                return method.prepare(sweep);
                            }
                        }
                    }),+
                }
                Err(Error::Panic(format!("{self:?} is not compiled for {:?}", F::FLOAT)))
            }
        }
    };
}
methods! {
    Copy = copy::Copy,
    Scale = scale::Scale,
    Linear = linear::Linear,
    Slerp = slerp::Slerp,
    Nuslerp = nuslerp::Nuslerp,
    Multislerp = multislerp::Multislerp,
    Karcher = karcher::Karcher,
    Nearswap = nearswap::Nearswap,
    ArceeFusion = arcee_fusion::ArceeFusion,
    Ram = ram::Ram,
    RamplusTl = ramplus_tl::RamplusTl,
    TaskArithmetic = task_arithmetic::TaskArithmetic,
    Ties = ties::Ties,
    DareLinear = dare::Dare<false>,
    DareTies = dare::Dare<true>,
    Della = della::Della<true>,
    DellaLinear = della::Della<false>,
    Breadcrumbs = breadcrumbs::Breadcrumbs<false>,
    BreadcrumbsTies = breadcrumbs::Breadcrumbs<true>,
    Sce = sce::Sce,
    ModelStock = model_stock::ModelStock,
    ConsensusTa = consensus::ConsensusTa,
    ConsensusTies = consensus::ConsensusTies,
    Magmax = magmax::Magmax,
    LocalizeAndStitch = localize_and_stitch::LocalizeAndStitch,
    Cabs = cabs::Cabs,
    Pcb = pcb::Pcb,
    Mergekit = mergekit::Mergekit,
}

/// Checks that numbers are finite.
fn finite(what: &str, numbers: &[f64]) -> Checked<(), String> {
    match numbers.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(format!("{what} {x} is not finite")),
        None => Ok(()),
    }
}

/// Checks that a number is finite and not negative.
fn not_negative(what: &str, number: f64) -> Checked<(), String> {
    if number < 0.0 { Err(format!("{what} {number} is negative")) } else { finite(what, &[number]) }
}

/// Checks the number of sources.
fn expect(sources: usize, wanted: usize) -> Checked<(), String> {
    if sources == wanted { Ok(()) } else { Err(format!("{sources} sources, wanted {wanted}")) }
}

/// Checks that there are a base and models.
fn based(sources: usize) -> Checked<(), String> {
    if sources < 2 { Err(format!("{sources} sources, wanted a base and models")) } else { Ok(()) }
}

/// Checks that there is one weight for each source after the first `bases`.
fn weighs(weights: &[f64], bases: usize, sources: usize) -> Checked<(), String> {
    if weights.is_empty() {
        return Err("no weights".into());
    }
    expect(sources, bases + weights.len())?;
    finite("weight", weights)
}

/// Checks the numbers by which models draw: two models with the same number would draw the same.
fn numbered(numbers: &[u32], models: usize) -> Checked<(), String> {
    if numbers.len() != models {
        return Err(format!("{} model numbers, wanted {models}", numbers.len()));
    }
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two models have the number {} and would draw the same random numbers", pair[0])),
        None => Ok(()),
    }
}

/// Checks the fractions of elements kept, one per model; the base is the first source.
fn shares(densities: &[f64], sources: usize) -> Checked<(), String> {
    portions("density", densities, sources)
}

/// Checks fractions of elements, one per model; the base is the first source.
fn portions(what: &str, numbers: &[f64], sources: usize) -> Checked<(), String> {
    expect(sources, numbers.len() + 1)?;
    match numbers.iter().find(|x| !(0.0..=1.0).contains(*x)) {
        Some(x) => Err(format!("{what} {x} is outside [0, 1]")),
        None => Ok(()),
    }
}
