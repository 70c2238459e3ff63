//! Runs a plan: the pool, the tiles, progress, cancel, resume and the report.
use crate::audit::{self, DigestOf};
use crate::crc::Crc;
use crate::draw;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::journal::{Claim, Journal};
use crate::lock::Lock;
use crate::plan::{OutputFile, Plan};
use crate::run::{Options, Run};
use crate::shard::Shard;
use crate::source::{self, Settings};
use crate::sweep::BLOCK;
use crate::watch::{Watch, pool};
use crate::writer::Writer;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// A finished file or tensor.
#[derive(Debug, Serialize)]
pub struct Written<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file that holds it, of a tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<&'a str>,
    /// Bytes, of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// CRC-64/NVME, hexadecimal.
    pub crc64nvme: String,
    /// Under its name, of a tensor, where one was asked for.
    #[serde(flatten)]
    pub digest: Option<DigestOf>,
}

/// What a run did.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Names the work.
    pub plan_digest: String,
    /// The shards.
    pub files: Vec<Written<'a>>,
    /// The tensors.
    pub tensors: Vec<Written<'a>>,
    /// Bytes read from the inputs by this run, each sweep counted but the extra ones of a threshold search.
    pub bytes_read: u64,
    /// Bytes of tensors written by this run.
    pub bytes_written: u64,
    /// Tensors that an earlier run had finished.
    pub resumed: usize,
}

/// Bytes that a task reads and writes, for progress: extra sweeps of a threshold search not counted.
fn task_totals(plan: &Plan, index: usize, bytes: usize) -> (u64, u64) {
    (bytes as u64 * plan.tasks[index].by.sweeps(), plan.written()[index].bytes.len() as u64)
}

/// Runs a plan in a place: shards, index and journal. Data that cannot be merged clear the place; any other failure leaves
/// it for a resume.
pub fn execute<'a>(plan: &'a Plan, lock: &mut Lock, options: Options, watch: &Watch) -> Result<Report<'a>> {
    let result = execute_in(plan, lock, options, watch);
    if let Err(Error::NonFinite(_)) = &result {
        lock.clear()?;
    }
    result
}

fn execute_in<'a>(plan: &'a Plan, lock: &mut Lock, options: Options, watch: &Watch) -> Result<Report<'a>> {
    if options.tile == 0 || !options.tile.is_multiple_of(BLOCK) || options.tile > 1 << 30 {
        return Err(Error::Merge(format!(
            "tile of {} elements: wanted a multiple of {BLOCK}, at most 2^30",
            options.tile
        )));
    }
    if options.threads == Some(0) {
        return Err(Error::Merge("threads: 0, wanted at least 1".into()));
    }
    let shards = plan.open_inputs()?;
    let reads = plan.check(&shards)?;
    let (mut read, mut written) = (0, 0);
    for (task, bytes) in reads.iter().enumerate() {
        let (task_read, task_written) = task_totals(plan, task, *bytes);
        read += task_read;
        written += task_written;
    }
    watch.expect(read, written);
    let (journal, claims) = Journal::open(lock, plan, options.sync)?;
    let partial = lock.partial();
    let writer = Writer::open(plan, partial, options.sync)?;
    let pool = pool(options.threads)?;
    let run = Run { plan, reads: &reads, shards: &shards, writer: &writer, journal: &journal, options, watch };
    let done = pool.install(|| run.all(&claims));
    if !matches!(done, Err(Error::Io { .. } | Error::Cancelled)) {
        // What was found wrong with data that changed under the run is wrong itself, and so are the claims.
        unchanged(&shards).or_else(|changed| journal.begin_anew().and(Err(changed)))?;
    }
    let (digests, resumed, before) = done?;
    let digests = tensor_digests(plan, &digests);
    writer.write_index(plan, partial)?;
    let mut cryptographic = HashMap::new();
    if options.digest.is_some() {
        for output in &plan.outputs {
            let sums = pool.install(|| audit::sum_file(&partial.join(&output.name), options.digest, watch))?;
            cryptographic.extend(sums.tensors.into_iter().map(|sum| (sum.name, sum.digest)));
        }
    }
    let (bytes_read, bytes_written) = watch.progress();
    Ok(Report {
        plan_digest: journal.plan_digest().to_owned(),
        files: file_digests(plan, &writer, &digests),
        tensors: plan
            .tensors
            .iter()
            .zip(&digests)
            .map(|(tensor, crc)| Written {
                name: &tensor.name,
                file: Some(&plan.outputs[tensor.output].name),
                size: None,
                crc64nvme: crc.hex(),
                digest: cryptographic.remove(&tensor.name).flatten(),
            })
            .collect(),
        bytes_read: bytes_read - before.0,
        bytes_written: bytes_written - before.1,
        resumed,
    })
}

/// Fails if an input is not the file any more that was mapped, or was written to since.
fn unchanged(shards: &[Arc<Shard>]) -> Result<()> {
    let problems: Vec<String> = shards.iter().filter_map(|shard| shard.changed().map(|why| why.to_string())).collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Changed(format!(
        "an input changed while it was merged, so nothing of the result counts; let nothing write there and run the same \
         command again:\n- {}",
        problems.join("\n- ")
    )))
}

/// The checksum of each tensor, combined from those of its tasks.
fn tensor_digests(plan: &Plan, digests: &[Crc]) -> Vec<Crc> {
    let mut tensors = vec![Crc::EMPTY; plan.tensors.len()];
    for (place, crc) in plan.written().iter().zip(digests) {
        tensors[place.tensor] = tensors[place.tensor].join(*crc);
    }
    tensors
}

/// The checksum of each file, combined from those of its header and tensors.
fn file_digests<'a>(plan: &'a Plan, writer: &Writer, digests: &[Crc]) -> Vec<Written<'a>> {
    let file = |(index, output): (usize, &'a OutputFile)| {
        let (prefix, size) = writer.output(index);
        let mine = plan.tensors.iter().zip(digests).filter(|(tensor, _)| tensor.output == index);
        let crc = mine.fold(Crc::of(prefix), |crc, (_, tensor)| crc.join(*tensor));
        Written { name: &output.name, file: None, size: Some(size), crc64nvme: crc.hex(), digest: None }
    };
    plan.outputs.iter().enumerate().map(file).collect()
}

impl Run<'_> {
    /// Every tensor's checksum, in order, how many tensors an earlier run had finished, and what it read and wrote.
    fn all(&self, claims: &[Claim]) -> Result<(Vec<Crc>, usize, (u64, u64))> {
        let mut digests: Vec<Option<Crc>> = vec![None; self.plan.tasks.len()];
        let mut before = (0, 0);
        let verified: Vec<bool> = claims.par_iter().map(|claim| self.verify(*claim)).collect::<Result<_>>()?;
        for (claim, verified) in claims.iter().zip(verified) {
            if !verified {
                self.journal.void(claim.task)?;
                continue;
            }
            let (read, written) = task_totals(self.plan, claim.task, self.reads[claim.task]);
            self.watch.add_read(read as usize);
            self.watch.add_written(written as usize);
            self.writer.finish(claim.task)?;
            before = (before.0 + read, before.1 + written);
            digests[claim.task] = Some(Crc::known(claim.crc64nvme, self.plan.written()[claim.task].bytes.len()));
        }
        let resumed = digests.iter().flatten().count();
        let finish = |(index, digest): (usize, &Option<Crc>)| match digest {
            Some(digest) => Ok(*digest),
            None => self.tensor(index),
        };
        // Tensors beside tensors, and tiles inside them: no core waits while one tensor's threshold is being found.
        let digests = digests.par_iter().with_max_len(1).enumerate().map(finish).collect::<Result<_>>()?;
        Ok((digests, resumed, before))
    }

    /// Whether the bytes on the disk are what a journal claims.
    fn verify(&self, claim: Claim) -> Result<bool> {
        let Some(place) = self.plan.written().get(claim.task) else { return Ok(false) };
        let mut crc = Crc::EMPTY;
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        let reader = self.writer.reader(claim.task)?;
        while offset < place.bytes.len() {
            self.watch.check()?;
            let size = buffer.len().min(place.bytes.len() - offset);
            reader.read(offset, &mut buffer[..size])?;
            crc = crc.join(Crc::of(&buffer[..size]));
            offset += size;
        }
        Ok(crc.value == claim.crc64nvme)
    }

    fn tensor(&self, index: usize) -> Result<Crc> {
        self.watch.check()?;
        let task = &self.plan.tasks[index];
        let (_, tensor) = self.plan.target(index);
        let crc = match Float::of(tensor.dtype) {
            None => self.copy_bytes(index)?,
            Some(output) => {
                let open = |input: usize| Ok(self.shards[input].clone());
                let sources =
                    task.of.iter().map(|expr| Ok(source::build(self.plan, expr, &open)?.0)).collect::<Result<_>>()?;
                let Options { tile, simd, .. } = self.options;
                let settings = Settings { tile, simd, watch: self.watch, key: draw::key(self.plan.seed, &task.name) };
                let allow_nonfinite = self.plan.allow_nonfinite;
                let job = Job { name: &tensor.name, output, method: &task.by, settings, allow_nonfinite };
                job.run(sources, &|offset, bytes| self.writer.write(index, offset, bytes))?
            }
        };
        self.writer.finish(index)?;
        self.journal.claim(Claim { task: index, crc64nvme: crc.value })?;
        Ok(crc)
    }

    /// Integers and bools, byte for byte.
    fn copy_bytes(&self, index: usize) -> Result<Crc> {
        let task = &self.plan.tasks[index];
        let (shard, tensor) = task.resolve(self.shards)?[0];
        let mut crc = Crc::EMPTY;
        for (i, bytes) in shard.bytes(tensor).chunks(1 << 20).enumerate() {
            self.watch.check()?;
            self.writer.write(index, i << 20, bytes)?;
            crc = crc.join(Crc::of(bytes));
            self.watch.add_written(bytes.len());
        }
        self.watch.add_read(self.reads[index]);
        Ok(crc)
    }
}
