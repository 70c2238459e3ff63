//! Digests that identify work independently of where and when it runs: inputs count by size and header, not by path and
//! time.
use super::{Expr, Fill, OutputTensor, Plan, Table};
use crate::error::{Error, Result};
use blake3::{Hash, Hasher};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// An expression whose inputs are numbered in order of first use. Plain tensors, the most common case, are not cloned.
#[derive(Serialize)]
#[serde(untagged)]
enum Numbered<'a> {
    Tensor(usize, &'a str),
    Made(Expr),
}

/// Numbered expressions or a table, with the size and header of each input.
#[derive(Serialize)]
struct Reading<'a, T> {
    what: T,
    inputs: Vec<(u64, &'a str)>,
}

/// One task: everything that its bytes depend on.
#[derive(Serialize)]
struct OneTask<'a> {
    plan: u32,
    seed: u64,
    tensor: (&'a str, safetensors::Dtype, &'a [usize]),
    elements: (usize, usize),
    by: &'a super::Method,
    of: Reading<'a, [Vec<Numbered<'a>>; 2]>,
    tables: BTreeMap<&'a str, &'a str>,
}

/// One output file: names, dtypes and shapes, without the contents.
#[derive(Serialize)]
struct OneOutput<'a> {
    plan: u32,
    file: &'a super::OutputFile,
    tensors: Vec<(&'a str, safetensors::Dtype, &'a [usize])>,
}

/// Computes BLAKE3 of a value's JSON. `text` is scratch: feeding the hasher token by token takes several times as long.
fn hash(value: &impl Serialize, text: &mut Vec<u8>) -> Result<Hash> {
    text.clear();
    serde_json::to_writer(&mut *text, value).map_err(|e| Error::Panic(format!("digest: {e}")))?;
    Ok(blake3::hash(text))
}

/// Numbers inputs in order of first use.
struct Numbering<'a> {
    plan: &'a Plan,
    found: Vec<usize>,
}

impl<'a> Numbering<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { plan, found: Vec::new() }
    }

    fn number(&mut self, input: usize) -> usize {
        let known = self.found.iter().position(|found| *found == input);
        known.unwrap_or_else(|| {
            self.found.push(input);
            self.found.len() - 1
        })
    }

    fn of(&mut self, exprs: &'a [Expr]) -> Vec<Numbered<'a>> {
        let one = |expr: &'a Expr| match expr {
            Expr::Tensor(input, name) => Numbered::Tensor(self.number(*input), name),
            Expr::Made(_) => {
                let mut expr = expr.clone();
                expr.renumber(&mut |input| self.number(input));
                Numbered::Made(expr)
            }
        };
        exprs.iter().map(one).collect()
    }

    fn reading<T>(self, what: T) -> Reading<'a, T> {
        let file = |input: usize| (self.plan.inputs[input].size, self.plan.inputs[input].header.as_str());
        Reading { what, inputs: self.found.into_iter().map(file).collect() }
    }
}

fn tensor(tensor: &OutputTensor) -> (&str, safetensors::Dtype, &[usize]) {
    (&tensor.name, tensor.dtype, &tensor.shape)
}

impl Plan {
    /// Returns the digest of each task: tensor and rows, method, sources and seed. It does not depend on the rest of
    /// the plan.
    pub fn task_digests(&self) -> Result<&[Hash]> {
        if let Some(known) = self.digests.get() {
            return Ok(known);
        }
        let digests = self.find_task_digests()?;
        Ok(self.digests.get_or_init(|| digests))
    }

    fn find_task_digests(&self) -> Result<Vec<Hash>> {
        let mut text = Vec::new();
        let mut tables = BTreeMap::new();
        for (id, table) in &self.tables {
            tables.insert(id.as_str(), self.table_digest(table, &mut text)?.to_hex().to_string());
        }
        let one = |(task, region): (&super::Task, &super::Region)| {
            let mut used = BTreeSet::new();
            let gathers = &mut |expr: &'_ Expr| used.extend(expr.table().map(str::to_owned));
            task.of.iter().chain(&task.with).for_each(|expr| expr.visit(gathers));
            let mut inputs = Numbering::new(self);
            let reading = [inputs.of(&task.of), inputs.of(&task.with)];
            let one = OneTask {
                plan: self.plan,
                seed: self.seed,
                tensor: tensor(&self.tensors[region.tensor]),
                elements: (region.elements.start, region.elements.end),
                by: &task.by,
                of: inputs.reading(reading),
                tables: tables
                    .iter()
                    .filter(|(id, _)| used.contains(**id))
                    .map(|(id, hex)| (*id, hex.as_str()))
                    .collect(),
            };
            hash(&one, &mut text)
        };
        self.tasks.iter().zip(self.written()).map(one).collect()
    }

    fn table_digest(&self, table: &Table, text: &mut Vec<u8>) -> Result<Hash> {
        let (mut table, mut inputs) = (table.clone(), Numbering::new(self));
        for (_, fill) in &mut table.fills {
            if let Fill::Mean(rows) = fill {
                for (expr, _) in rows {
                    expr.renumber(&mut |input| inputs.number(input));
                }
            }
        }
        hash(&inputs.reading(table), text)
    }

    /// Computes the digest of each output file: its name and tensors, whatever they contain.
    pub fn layout_digests(&self) -> Result<Vec<Hash>> {
        let mut outputs: Vec<OneOutput> = Vec::new();
        outputs.extend(self.outputs.iter().map(|file| OneOutput { plan: self.plan, file, tensors: Vec::new() }));
        for one in &self.tensors {
            outputs[one.output].tensors.push(tensor(one));
        }
        let mut text = Vec::new();
        outputs.iter().map(|output| hash(output, &mut text)).collect()
    }

    /// Computes the digest of the plan: BLAKE3 of the digests of layout and tasks.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = Hasher::new();
        for hash in self.layout_digests()?.iter().chain(self.task_digests()?) {
            hasher.update(hash.as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}
