//! The input files of a run: each is opened when the first task that reads it starts, and closed when the last has ended, so
//! that neither open files, maps nor page tables grow with their number.
use crate::container::{Container, Header};
use crate::error::{Error, Result};
use crate::plan::{Expr, Fill, Plan};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug)]
struct Input {
    /// What the file was when it was checked.
    header: Arc<Header>,
    /// Readings still to come.
    readings: AtomicUsize,
    opened: Mutex<Option<Arc<Container>>>,
}

/// The inputs that a task reads.
pub(crate) fn inputs_of(plan: &Plan, task: usize) -> BTreeSet<usize> {
    let mut inputs = BTreeSet::new();
    let mut tables = BTreeSet::new();
    let task = &plan.tasks[task];
    let mut see = |expr: &Expr| {
        if let Expr::Tensor(input, _) = expr {
            inputs.insert(*input);
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
    inputs
}

/// The input files of a run.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    plan: &'a Plan,
    files: Vec<Input>,
    /// Whether files are mapped, where that is asked for or ruled out.
    mmap: Option<bool>,
}

impl<'a> Inputs<'a> {
    /// Those that were checked, for the tasks given.
    pub fn new(plan: &'a Plan, checked: Vec<Arc<Header>>, tasks: &[usize], mmap: Option<bool>) -> Self {
        let input = |header| Input { header, readings: AtomicUsize::new(0), opened: Mutex::new(None) };
        let inputs = Self { plan, files: checked.into_iter().map(input).collect(), mmap };
        for input in tasks.iter().flat_map(|task| inputs_of(plan, *task)) {
            inputs.files[input].readings.fetch_add(1, Ordering::Relaxed);
        }
        inputs
    }

    /// An input, opened.
    pub fn open(&self, input: usize) -> Result<Arc<Container>> {
        let Input { header, opened, .. } = &self.files[input];
        let mut opened = opened.lock().map_err(|_| Error::Panic("an input's lock is poisoned".into()))?;
        if let Some(file) = &*opened {
            return Ok(file.clone());
        }
        let file = Container::open(header, self.mmap).map(Arc::new);
        // What a file that changed looks like now is beside the point.
        self.unchanged([input])?;
        Ok(opened.insert(file?).clone())
    }

    /// Closes what the task was the last to read, after a look whether it is still what it was.
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

    /// Those of the tasks given.
    pub fn read_by(&self, tasks: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        tasks.into_iter().flat_map(|task| inputs_of(self.plan, task)).collect()
    }

    /// Why each that is not the file any more that was checked, or was written to since, is not; and what the system said of
    /// the first of which it does not tell.
    pub fn changes(&self, inputs: impl IntoIterator<Item = usize>) -> (Vec<(usize, String)>, Result<()>) {
        let (mut changes, mut told) = (Vec::new(), Ok(()));
        for input in inputs {
            let Header { stamp, path, .. } = &*self.files[input].header;
            match stamp.changed(path) {
                Ok(why) => changes.extend(why.map(|why| (input, why.to_string()))),
                Err(error) => told = told.and(Err(error)),
            }
        }
        (changes, told)
    }

    /// Fails if one of these inputs changed.
    pub fn unchanged(&self, inputs: impl IntoIterator<Item = usize>) -> Result<()> {
        let (changes, told) = self.changes(inputs);
        if changes.is_empty() {
            return told;
        }
        let problems: Vec<String> = changes.into_iter().map(|(_, why)| why).collect();
        Err(Error::Changed(format!(
            "an input changed while it was merged, so nothing made of it counts; let nothing write there and run the same \
             command again:\n- {}",
            problems.join("\n- ")
        )))
    }
}
