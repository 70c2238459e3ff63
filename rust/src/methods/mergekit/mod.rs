//! Methods in the arithmetic of mergekit 0.1.5, for comparisons bit for bit: every operation is rounded to the dtype of the
//! recipe, in mergekit's order, and what it sums over a tensor is summed in f32 in the order of torch's kernels (eight
//! lanes, one thread). The sources hold values of that dtype. Written from its observed behaviour, not tuned for speed.
mod added;
mod columns;
mod difference;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod pointwise;
mod ram;
mod ramplus_tl;
mod reductions;
mod rounding;
mod sce;
mod slerp;
mod weighted;

use super::breadcrumbs::Breadcrumbs;
use super::delta::All;
use super::model_stock::ModelStock;
use super::ranked::{Band, Largest};
use super::ties::{MajoritySign, Ties};
use super::{Checked, Merge, Method};
use crate::dtype::{BF16, F16, F32, Float};
use crate::error::{Error, Result};
use crate::lanes::{Kernel, Lanes};
use crate::sweep::Sweep;
use added::{Numbers, added};
use difference::Difference;
use rounding::Round;
use safetensors::Dtype;
use std::marker::PhantomData;

/// Models whose f32 numbers torch sums one after the other.
const SUMMED: usize = 16;
/// Models that have fewer than as many pairs.
const BY_ROWS: usize = 6;

/// A method whose every operation is rounded to a dtype.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mergekit {
    /// BF16, F16 or F32.
    pub dtype: Dtype,
    /// The method.
    pub by: Box<Method>,
    /// Length of the tensor's first axis, along which `nuslerp_row_wise` has its vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leading: Option<usize>,
}

impl Mergekit {
    fn kernel<F: Lanes, D: Round>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        match &*self.by {
            Method::Scale(method) => Ok(weighted::scaled::<F, D>(method)),
            Method::Linear(method) => Ok(weighted::linear::<F, D>(method)),
            Method::Slerp(method) => slerp::slerp::<F, D>(method, sweep),
            Method::Nuslerp(method) => nuslerp::nuslerp::<F, D>(method, self.leading, sweep),
            Method::Multislerp(method) => multislerp::multislerp::<F, D>(method, sweep),
            Method::Nearswap(method) => Ok(nearswap::nearswap::<F, D>(method)),
            Method::TaskArithmetic(method) => {
                let (weights, normalize, lambda) = (&method.weights, method.normalize, method.lambda);
                added::<F, _, D, false>(All, &Numbers { weights, normalize, lambda, rescale: false }, sweep)
            }
            Method::Ties(method) => {
                let Ties { weights, normalize, rescale, lambda, .. } = method;
                let keep = Largest::by(sweep, &method.densities, |model| Difference(model, PhantomData::<D>))?;
                let numbers = Numbers { weights, normalize: *normalize, lambda: *lambda, rescale: *rescale };
                added::<F, _, D, true>(keep, &numbers, sweep)
            }
            Method::Sce(method) => sce::sce::<F, D>(method, sweep),
            Method::ModelStock(method) => model_stock::model_stock::<F, D>(method, sweep),
            Method::Ram(method) => Ok(ram::ram::<F, D>(method, sweep.len())),
            Method::RamplusTl(method) => ramplus_tl::ramplus_tl::<F, D>(method, sweep),
            Method::Breadcrumbs(method) => banded::<F, D, false>(method, sweep),
            Method::BreadcrumbsTies(method) => banded::<F, D, true>(method, sweep),
            _ => Err(Error::Panic(format!("{:?} was checked, but has no arithmetic of mergekit's", self.by))),
        }
    }
}

fn banded<F: Lanes, D: Round, const ELECT: bool>(
    method: &Breadcrumbs<ELECT>,
    sweep: &Sweep<F>,
) -> Result<Box<dyn Kernel<F>>> {
    let Breadcrumbs { weights, normalize, rescale, lambda, .. } = method;
    let keep = Band::by(sweep, &method.densities, &method.gammas, |model| Difference(model, PhantomData::<D>))?;
    let numbers = Numbers { weights, normalize: *normalize, lambda: *lambda, rescale: *rescale };
    added::<F, _, D, ELECT>(keep, &numbers, sweep)
}

impl Merge for Mergekit {
    const SWEEPS: u64 = 1;
    // The dtype says how wide every operation is.
    const WIDE: bool = false;

    fn sweeps(&self) -> u64 {
        self.by.sweeps()
    }

    fn check(&self, sources: usize) -> Checked<(), String> {
        if !matches!(self.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            return Err(format!("operations are rounded to BF16, F16 or F32, not to {}", self.dtype));
        }
        if self.dtype == Dtype::F32 && sources > SUMMED + 1 && !matches!(*self.by, Method::Linear(_)) {
            return Err(format!("{sources} sources; torch's sum of more than {SUMMED} models in F32 is not made so"));
        }
        match &*self.by {
            Method::Ties(method) if method.majority_sign_method != MajoritySign::Total => {
                Err("signs are elected by `total` in the arithmetic of mergekit".into())
            }
            Method::Nuslerp(method) if method.by_columns() && self.leading.is_none() => {
                Err("`nuslerp_row_wise` needs `leading`, the length of the first axis, in the arithmetic of mergekit"
                    .into())
            }
            Method::ModelStock(ModelStock { filter_wise: true }) if sources > BY_ROWS + 1 => Err(format!(
                "{sources} sources; torch's mean of the cosines of more than {BY_ROWS} models is not made so by rows"
            )),
            Method::Scale(_)
            | Method::Linear(_)
            | Method::Slerp(_)
            | Method::Nuslerp(_)
            | Method::Multislerp(_)
            | Method::Nearswap(_)
            | Method::TaskArithmetic(_)
            | Method::Ties(_)
            | Method::Breadcrumbs(_)
            | Method::BreadcrumbsTies(_)
            | Method::Sce(_)
            | Method::ModelStock(_)
            | Method::Ram(_)
            | Method::RamplusTl(_) => self.by.check(sources),
            other => Err(format!("{other:?} is not among the methods in the arithmetic of mergekit")),
        }
    }

    fn resident(&self, rows: usize, columns: usize, sources: usize) -> usize {
        match (&*self.by, self.leading) {
            (Method::Nuslerp(method), Some(leading)) if method.by_columns() => {
                rows.saturating_mul(columns).checked_div(leading).unwrap_or(0).saturating_mul(nuslerp::OF_COLUMN)
            }
            (by, _) => by.resident(rows, columns, sources),
        }
    }

    fn prepare<F: Lanes>(&self, sweep: &Sweep<F>) -> Result<Box<dyn Kernel<F>>> {
        if F::FLOAT != Float::F32 {
            return Err(Error::Merge(format!("sources in {:?}, wanted {}; `cast` them", F::FLOAT, self.dtype)));
        }
        match self.dtype {
            Dtype::BF16 => self.kernel::<F, BF16>(sweep),
            Dtype::F16 => self.kernel::<F, F16>(sweep),
            _ => self.kernel::<F, F32>(sweep),
        }
    }
}
