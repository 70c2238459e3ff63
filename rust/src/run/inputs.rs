//! The input files of a run: each is opened when the first task that reads it starts and closed when the last one has
//! ended, so that open files, maps and page tables do not grow with the number of inputs.
use crate::container::{Container, Header};
use crate::error::{Error, Result};
use crate::plan::{Expr, Fill, Plan};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug)]
struct Input {
    /// State of the file when it was checked.
    header: Arc<Header>,
    /// Reads still to come.
    readings: AtomicUsize,
    opened: Mutex<Option<Arc<Container>>>,
}

/// Returns the inputs that a task reads.
pub(crate) fn inputs_of(plan: &Plan, task: usize) -> BTreeSet<usize> {
    let mut inputs = BTreeSet::new();
    each_input(plan, task, |input| {
        inputs.insert(input);
    });
    inputs
}

/// Calls `take` for each input that a task reads, in the order of its expressions, as often as they name it.
pub(crate) fn each_input(plan: &Plan, task: usize, mut take: impl FnMut(usize)) {
    let mut tables = BTreeSet::new();
    let task = &plan.tasks[task];
    let mut see = |expr: &Expr| {
        if let Expr::Tensor(input, _) = expr {
            take(*input);
        }
    };
    for expr in task.of.iter().chain(&task.with) {
        expr.visit(&mut see);
        expr.visit(&mut |expr| tables.extend(expr.table().map(str::to_owned)));
    }
    for (_, fill) in tables.iter().filter_map(|id| plan.tables.get(id)).flat_map(|table| &table.fills) {
        if let Fill::Mean(rows) = fill {
            for (expr, _) in rows {
                expr.visit(&mut see);
            }
        }
    }
}

/// The input files of a run.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    plan: &'a Plan,
    files: Vec<Input>,
    /// Whether to map files, if requested either way.
    mmap: Option<bool>,
}

impl<'a> Inputs<'a> {
    /// Builds the table from checked headers, for the given tasks.
    pub fn new(plan: &'a Plan, checked: Vec<Arc<Header>>, tasks: &[usize], mmap: Option<bool>) -> Self {
        let input = |header| Input { header, readings: AtomicUsize::new(0), opened: Mutex::new(None) };
        let inputs = Self { plan, files: checked.into_iter().map(input).collect(), mmap };
        for input in tasks.iter().flat_map(|task| inputs_of(plan, *task)) {
            inputs.files[input].readings.fetch_add(1, Ordering::Relaxed);
        }
        inputs
    }

    /// Returns an input, opened.
    pub fn open(&self, input: usize) -> Result<Arc<Container>> {
        let Input { header, opened, .. } = &self.files[input];
        let mut opened = opened.lock().map_err(|_| Error::Panic("an input's lock is poisoned".into()))?;
        if let Some(file) = &*opened {
            return Ok(file.clone());
        }
        let file = Container::open(header, self.mmap).map(Arc::new);
        // What a changed file looks like now does not matter.
        self.unchanged([input])?;
        Ok(opened.insert(file?).clone())
    }

    /// Closes the inputs for which this task was the last, after checking that they are unchanged.
    pub fn leave(&self, task: usize) -> Result<()> {
        let mut last = Vec::new();
        for input in inputs_of(self.plan, task) {
            let file = &self.files[input];
            if file.readings.fetch_sub(1, Ordering::AcqRel) == 1 {
                *file.opened.lock().map_err(|_| Error::Panic("an input's lock is poisoned".into()))? = None;
                last.push(input);
            }
        }
        self.unchanged(last)
    }

    /// Returns the inputs of the given tasks.
    pub fn read_by(&self, tasks: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        tasks.into_iter().flat_map(|task| inputs_of(self.plan, task)).collect()
    }

    /// Returns why each changed input no longer matches what was checked, and the system's error for the first whose
    /// status it does not report.
    pub fn changes(&self, inputs: impl IntoIterator<Item = usize>) -> (Vec<(usize, String)>, Result<()>) {
        let (mut changes, mut reported) = (Vec::new(), Ok(()));
        for input in inputs {
            let Header { stamp, path, .. } = &*self.files[input].header;
            match stamp.changed(path) {
                Ok(why) => changes.extend(why.map(|why| (input, why.to_string()))),
                Err(error) => reported = reported.and(Err(error)),
            }
        }
        (changes, reported)
    }

    /// Fails if one of these inputs changed.
    pub fn unchanged(&self, inputs: impl IntoIterator<Item = usize>) -> Result<()> {
        let (changes, reported) = self.changes(inputs);
        if changes.is_empty() {
            return reported;
        }
        let problems: Vec<String> = changes.into_iter().map(|(_, why)| why).collect();
        Err(Error::Changed(format!(
            "an input changed while it was merged, so nothing made of it counts; let nothing write there and run the same \
             command again:\n- {}",
            problems.join("\n- ")
        )))
    }
}
