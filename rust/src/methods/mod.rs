//! The methods, one file each, and one word each in the list below. A method never sees a file, a thread or a name.
pub mod copy;
pub mod dare_linear;
pub mod delta;
pub mod linear;
pub mod nuslerp;
pub mod scale;
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

/// A method of the plan: the numbers of one tensor, resolved.
pub trait Merge {
    /// How often the sources are read, extra sweeps of a search not counted.
    const SWEEPS: u64;
    /// Whether it is compiled for 16-bit inputs; others get those as f32 pieces, which costs a third more time and far less
    /// code.
    const DIRECT: bool = false;
    /// Whether an f32 result is computed in f64, so that it is rounded once.
    const WIDE: bool = true;

    /// How many sources it takes, and its numbers, checked.
    fn check(&self, sources: usize) -> Checked<(), String>;

    /// Bytes of heap that a task holds beside its pieces, at most.
    fn resident(&self, _rows: usize, _columns: usize, _sources: usize) -> usize {
        0
    }

    /// Asks the tensor what must be known of the whole, and settles how an element is made.
    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>>;
}

macro_rules! methods {
    ($($name:ident = $method:ty),+ $(,)?) => {
        /// What is done to a tensor, every number resolved: `{"slerp": {"t": 0.3}}`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case", deny_unknown_fields)]
        pub enum Method {
            $(#[doc = concat!("See [`", stringify!($method), "`].")] $name($method)),+
        }

        impl Method {
            /// Every method: its name, the names of its numbers, and [`Merge::SWEEPS`].
            pub fn all() -> impl Iterator<Item = (&'static str, &'static [&'static str], u64)> {
                let of_each = [$((words::<$method>(), <$method>::SWEEPS)),+];
                words::<Self>().iter().zip(of_each).map(|(name, (numbers, sweeps))| (*name, numbers, sweeps))
            }

            /// See [`Merge::check`].
            pub fn check(&self, sources: usize) -> Checked<(), String> {
                match self { $(Self::$name(method) => method.check(sources)),+ }
            }

            /// See [`Merge::SWEEPS`].
            pub fn sweeps(&self) -> u64 {
                match self { $(Self::$name(_) => <$method>::SWEEPS),+ }
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
                        // Constants: what a method is not compiled for takes no code.
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
    TaskArithmetic = task_arithmetic::TaskArithmetic,
    Ties = ties::Ties,
    DareLinear = dare_linear::DareLinear,
}

/// Checks that numbers are finite.
fn finite(what: &str, numbers: &[f64]) -> Checked<(), String> {
    match numbers.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(format!("{what} {x} is not finite")),
        None => Ok(()),
    }
}

/// Checks how many sources there are.
fn expect(sources: usize, wanted: usize) -> Checked<(), String> {
    if sources == wanted { Ok(()) } else { Err(format!("{sources} sources, wanted {wanted}")) }
}

/// Checks that there is a weight for each source but the first `bases`.
fn weighs(weights: &[f64], bases: usize, sources: usize) -> Checked<(), String> {
    if weights.is_empty() {
        return Err("no weights".into());
    }
    expect(sources, bases + weights.len())?;
    finite("weight", weights)
}

/// Checks the numbers of models by which they draw: two with the same would draw the same.
fn numbered(numbers: &[u32], models: usize) -> Checked<(), String> {
    if numbers.len() != models {
        return Err(format!("{} numbers of models, wanted {models}", numbers.len()));
    }
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two models have the number {}, and would draw the same", pair[0])),
        None => Ok(()),
    }
}

/// Checks shares of elements kept, one a model; the base is the first source.
fn shares(densities: &[f64], sources: usize) -> Checked<(), String> {
    expect(sources, densities.len() + 1)?;
    match densities.iter().find(|d| !(0.0..=1.0).contains(*d)) {
        Some(d) => Err(format!("density {d} is outside [0, 1]")),
        None => Ok(()),
    }
}
