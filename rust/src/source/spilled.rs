//! Stages that are read several times: each is computed once, into a scratch file of the task, instead of once a sweep.
use super::build::Built;
use super::{Settings, Slot, Source, Tensor};
use crate::dtype::{Float, with_format};
use crate::error::{Error, Result};
use crate::plan::{Expr, Fill, Made, Plan, Task};
use crate::simd::Simd;
use crate::store::{Scratch, Store};
use crate::sweep::{STRIP, Sweep};
use std::cell::OnceCell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;

/// Returns the stages below a task that need statistics and that it reads several times; each once. One without
/// statistics is computed with every strip that is read of it: that costs less than writing it.
pub fn repeated<'p>(plan: &'p Plan, task: &'p Task) -> Vec<&'p Expr> {
    let mut seen = Vec::new();
    for expr in &task.of {
        see(plan, expr, task.by.sweeps() > 1, &mut seen);
    }
    seen.into_iter().filter(|(_, again)| *again).map(|(stage, _)| stage).collect()
}

/// Finds stages in an expression, and whether each is read `again` after it was read once.
fn see<'p>(plan: &'p Plan, expr: &'p Expr, again: bool, seen: &mut Vec<(&'p Expr, bool)>) {
    if let Some(of) = stage(expr) {
        if let Some((_, again)) = seen.iter_mut().find(|(known, _)| *known == expr) {
            *again = true;
            return;
        }
        seen.push((expr, again));
        for part in of {
            see(plan, part, true, seen);
        }
        return;
    }
    let Expr::Made(made) = expr else { return };
    let again = match &**made {
        // Read in strips that take a few elements of each row.
        Made::Transpose(_) => true,
        // Read for the norms of the rows, and for the result.
        Made::Lora { magnitude, .. } => again || magnitude.is_some(),
        Made::Gather { table, .. } => {
            let means = plan.tables[table].fills.iter().filter_map(|(_, fill)| match fill {
                Fill::Mean(rows) => Some(rows),
                Fill::Zero => None,
            });
            for (row, _) in means.flatten() {
                see(plan, row, false, seen);
            }
            again
        }
        _ => again,
    };
    for part in expr.parts() {
        see(plan, part, again, seen);
    }
}

/// Returns the sources of a stage that needs statistics, rounded or not; `None` for any other expression.
fn stage(expr: &Expr) -> Option<&[Expr]> {
    let Expr::Made(made) = expr else { return None };
    let made = if let Made::Cast { of: Expr::Made(of), .. } = &**made { of } else { made };
    match &**made {
        Made::Merged { by, of, .. } if by.sweeps() > 1 => Some(of),
        _ => None,
    }
}

/// The stages of a task that are spilled.
#[derive(Default)]
pub struct Stages<'a>(Vec<Stage<'a>>);

struct Stage<'a> {
    expr: &'a Expr,
    path: PathBuf,
    mmap: Option<bool>,
    settings: Settings<'a>,
    /// Its result and its shape, once a source is built that reads it.
    spilled: OnceCell<(Arc<Spilled>, Vec<usize>)>,
}

impl<'a> Stages<'a> {
    /// Finds the stages of a task that are read several times. Their scratch files will be in `directory`, mapped or
    /// read as requested.
    pub fn of(plan: &'a Plan, task: usize, directory: &Path, mmap: Option<bool>, settings: Settings<'a>) -> Self {
        let stage = |(number, expr)| {
            let path = directory.join(format!("{task}-{number}"));
            Stage { expr, path, mmap, settings, spilled: OnceCell::new() }
        };
        Self(repeated(plan, &plan.tasks[task]).into_iter().enumerate().map(stage).collect())
    }

    /// Returns the source of an expression that `make` builds, or of its result if it is spilled: computed for the
    /// first source that reads it, shared by all.
    pub(super) fn build(&self, expr: &Expr, make: impl FnOnce() -> Result<Built>) -> Result<Built> {
        let Some(stage) = self.0.iter().find(|stage| stage.expr == expr) else { return make() };
        let (spilled, shape) = if let Some(known) = stage.spilled.get() {
            known
        } else {
            let (of, shape) = make()?;
            if of.is_empty() {
                return Ok((of, shape));
            }
            let made = (Arc::new(stage.spill(of)?), shape);
            stage.spilled.get_or_init(|| made)
        };
        Ok((Box::new(spilled.clone()), shape.clone()))
    }
}

impl Stage<'_> {
    /// Computes every element into a scratch file.
    fn spill(&self, mut of: Box<dyn Source>) -> Result<Spilled> {
        of.prepare(&self.settings)?;
        let (float, shape, size) = (of.float(), of.shape(), of.float().bytes());
        let file = Scratch::create(self.path.clone(), of.len() * size)?;
        let rows = of.unit() > 1;
        let mut leaves = Vec::new();
        of.leaves(&mut |leaf| leaves.push(leaf.clone()));
        with_format!(float, F => {
            let sweep = Sweep::<F>::new(slice::from_ref(&of), self.settings);
            let sweep = if rows { sweep.in_rows() } else { sweep };
            sweep.tiles(|tile| sweep.strips(&[0], tile, STRIP, |strip, of| file.write(of[0], strip.start * size)))?;
        });
        let (store, path) = file.finish(self.mmap)?;
        Ok(Spilled { float, shape, store, path, leaves })
    }
}

/// The result of a stage, in a scratch file.
struct Spilled {
    float: Float,
    shape: (usize, usize),
    store: Box<dyn Store>,
    path: PathBuf,
    /// The tensors of files that it was computed from.
    leaves: Vec<Tensor>,
}

impl Source for Arc<Spilled> {
    fn float(&self) -> Float {
        self.float
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn ready(&self) -> bool {
        self.store.in_place()
    }

    fn lease<'s>(&'s self, _: Simd, at: Range<usize>, slot: &'s mut Slot) -> Result<&'s [u8]> {
        let size = self.float.bytes();
        self.store.lend(at.start * size..at.end * size, &mut slot.bytes).map_err(Error::io(&self.path))
    }

    fn leaves<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        self.leaves.iter().for_each(visit);
    }
}
