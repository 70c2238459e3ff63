//! Checks the tasks of a plan against each other and against the input files.
use super::{Expr, Fill, Method, OutputTensor, Plan, Table, Task};
use crate::container::Header;
use crate::dtype::Float;
use crate::encode;
use crate::error::{Error, Result};
use crate::source;
use rayon::prelude::*;
use std::sync::Arc;

/// Tasks that a worker thread checks at a time: handing them out one by one would cost more than the checks.
const TASKS: usize = 64;

impl Expr {
    /// Returns the table of a gather, `None` for any other expression.
    pub(crate) fn table(&self) -> Option<&str> {
        match self {
            Self::Made(made) => match &**made {
                super::Made::Gather { table, .. } => Some(table),
                _ => None,
            },
            Self::Tensor(..) => None,
        }
    }
}

impl Task {
    /// Returns the tensors that the task reads, as inputs and names; fails if it reads anything but whole tensors.
    pub fn tensors(&self) -> Result<Vec<(usize, &str)>> {
        let tensors = self.of.iter().map(|expr| match expr {
            Expr::Tensor(input, name) => Ok((*input, name.as_str())),
            Expr::Made(_) => Err(Error::Panic(format!("`{}` is used as a plain tensor", expr.kind()))),
        });
        tensors.collect()
    }
}

impl Plan {
    /// Checks that every input and table referred to exists, so that later lookups cannot fail.
    pub(super) fn check_references(&self) -> Result<()> {
        for (index, task) in self.tasks.iter().enumerate() {
            let fault =
                |reason: String| Error::Merge(format!("plan, tensor `{}`: {reason}", self.target(index).1.name));
            task.of.iter().chain(&task.with).try_for_each(|expr| self.check_listed(expr)).map_err(fault)?;
        }
        for (id, table) in &self.tables {
            let fault = |reason: String| Error::Merge(format!("plan, table `{id}`: {reason}"));
            table.check().map_err(fault)?;
            let rows = table.fills.iter().filter_map(|(_, fill)| match fill {
                Fill::Mean(rows) => Some(rows),
                Fill::Zero => None,
            });
            for (expr, _) in rows.flatten() {
                self.check_listed(expr).map_err(fault)?;
                let mut nested = false;
                expr.visit(&mut |expr| nested |= expr.table().is_some());
                if nested {
                    return Err(fault("a mean reads rows of a `gather`, which may need this table itself".into()));
                }
            }
        }
        Ok(())
    }

    fn check_listed(&self, expr: &Expr) -> std::result::Result<(), String> {
        let mut problem = None;
        expr.visit(&mut |expr| {
            let missing = match expr {
                Expr::Tensor(input, name) if *input >= self.inputs.len() => {
                    Some(format!("`{name}` is read from input {input}, but the plan lists {}", self.inputs.len()))
                }
                _ => {
                    let table = expr.table().filter(|table| !self.tables.contains_key(*table));
                    table.map(|table| format!("`gather` uses table `{table}`, which is not in the plan"))
                }
            };
            problem = problem.take().or(missing);
        });
        problem.map_or(Ok(()), Err)
    }

    /// Checks every task against the input files, on the current worker threads. Returns the bytes that one sweep of
    /// each task reads, as progress counts them. Of several problems the first is reported.
    pub fn check(&self, headers: &[Arc<Header>]) -> Result<Vec<usize>> {
        let reads =
            (0..self.tasks.len()).into_par_iter().with_min_len(TASKS).map(|task| self.check_task(task, headers));
        reads.collect::<Vec<Result<_>>>().into_iter().collect()
    }

    fn check_task(&self, index: usize, headers: &[Arc<Header>]) -> Result<usize> {
        let task = &self.tasks[index];
        let (region, OutputTensor { name, dtype, shape, .. }) = self.target(index);
        let fault = |reason: String| Error::Merge(format!("plan, tensor `{name}`: {reason}"));
        task.by.check(task.of.len()).map_err(fault)?;
        if !task.with.is_empty() {
            return Err(fault(format!("the method takes nothing in `with`, but {} are given", task.with.len())));
        }
        let copies = matches!(task.by, Method::Copy(_));
        let whole = region.elements.len() == self.target(index).1.len();
        let mut read = 0;
        for expr in &task.of {
            read += if let Expr::Tensor(input, tensor) = expr {
                let header = &headers[*input];
                let tensor = header.tensor(tensor)?;
                let found = &tensor.shape;
                if if whole { found != shape } else { !region.fits(found, shape) } {
                    let wanted = if whole { format!("{shape:?}") } else { region.wanted(shape) };
                    let reason = format!("tensor `{}` has shape {found:?}, the plan wants {wanted}", tensor.name);
                    return Err(Error::checkpoint(&header.path, reason));
                }
                let both_float = Float::of(tensor.dtype).is_some() && encode::of(*dtype).is_some();
                if !(both_float || copies && tensor.dtype == *dtype) {
                    let reason = format!("tensor `{}` is {}, which cannot become {dtype}", tensor.name, tensor.dtype);
                    return Err(Error::checkpoint(&header.path, reason));
                }
                tensor.bytes.len()
            } else {
                let (source, found) = source::measured(self, expr, headers).map_err(|error| match error {
                    Error::Merge(reason) => fault(reason),
                    error => error,
                })?;
                if !region.fits(&found, shape) {
                    let wanted = region.wanted(shape);
                    return Err(fault(format!("`{}` makes shape {found:?}, the plan wants {wanted}", expr.kind())));
                }
                if encode::of(*dtype).is_none() || copies && task.of.len() > 1 {
                    return Err(fault(format!(
                        "`{}` makes floats, which cannot be compared with a copy or stored as {dtype}",
                        expr.kind()
                    )));
                }
                source.len() * source.float().bytes()
            };
        }
        Ok(read)
    }
}

impl Table {
    /// Checks that every row of the result has exactly one origin.
    fn check(&self) -> std::result::Result<(), String> {
        let runs = self.runs.iter().map(|(to, from, count)| (*to, *count, format!("run [{to}, {from}, {count}]")));
        let fills = self.fills.iter().map(|(row, _)| (*row, 1, format!("the fill of row {row}")));
        let mut segments: Vec<(usize, usize, String)> = runs.chain(fills).collect();
        segments.sort();
        let mut end = 0;
        for (to, count, what) in segments {
            if to != end || count == 0 {
                return Err(format!(
                    "{what} begins at row {to} and has {count} rows, but the next row to make is {end}"
                ));
            }
            end = to.checked_add(count).ok_or_else(|| format!("{what} overflows"))?;
        }
        if end != self.rows {
            return Err(format!("runs and fills make {end} rows, wanted {}", self.rows));
        }
        let empty = self.fills.iter().find(|(_, fill)| matches!(fill, Fill::Mean(rows) if rows.is_empty()));
        empty.map_or(Ok(()), |(row, _)| Err(format!("the fill of row {row} is the mean of no rows")))
    }
}
