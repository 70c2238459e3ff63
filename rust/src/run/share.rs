//! Several processes in one place, each with outputs of its own: they share the lock of the journal, and each keeps the claims
//! of its outputs by a lock on them. A whole merge and a commit want the place alone, and are refused meanwhile.
use super::begin::write_head;
use super::claims;
use super::flock::{append, flock_now, open_journal, read};
use super::head::{Head, Line, json};
use super::lock::Lock;
use super::writer::{make_way, open_own};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::watch::Watch;
use rustix::fs::FlockOperation;
use std::time::{Duration, Instant};

/// How long a process that shares a place waits for one that has it alone: for as long as another takes to begin there, or
/// a look at it, and not for a merge.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Begins a plan in a place together with other processes that write other outputs of it, and keeps `outputs` for this one.
/// The first of them has the place alone for a moment, to say in the journal whose work it is.
pub(crate) fn join<'a>(
    lock: &mut Lock,
    plan: &Plan,
    head: &Head,
    outputs: impl IntoIterator<Item = &'a str>,
    sync: bool,
    watch: &Watch,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        lock.leave();
        match write_head(lock, plan, head, sync) {
            Ok(()) | Err(Error::Busy(_)) => {}
            Err(error) => return Err(error),
        }
        let busy = match lock.share() {
            Ok(()) => match lock.contents()?.head {
                Some(theirs) if theirs == *head => break,
                Some(_) => lock.busy("another plan is at work there"),
                None => lock.busy_with_a_merge(),
            },
            Err(busy @ Error::Busy(_)) => busy,
            Err(error) => return Err(error),
        };
        if Instant::now() > until {
            lock.leave();
            return Err(busy);
        }
        watch.check()?;
        std::thread::sleep(PAUSE);
    }
    if sync {
        lock.sync_journal()?;
    }
    outputs.into_iter().try_for_each(|output| lock.keep(output))
}

impl Lock {
    /// Lets other processes work there too, on other outputs; or enters where they do.
    pub(crate) fn share(&mut self) -> Result<()> {
        let path = self.path();
        let file = match self.journal.take() {
            None => open_journal(&path)?,
            held => held,
        };
        // No system changes one lock for another in one step, so it is looked at anew what is there.
        match file {
            Some(file) if self.locks(&file, &path, FlockOperation::NonBlockingLockShared)? => self.journal = Some(file),
            _ => return Err(self.busy_with_a_merge()),
        }
        Ok(())
    }

    /// Keeps an output for this process in a shared place.
    pub(crate) fn keep(&mut self, output: &str) -> Result<()> {
        let path = self.partial.join(claims::name(output));
        make_way(&path)?;
        let file = open_own(&path).map_err(Error::io(&path))?;
        let locked = flock_now(&file, &path, FlockOperation::NonBlockingLockExclusive)?;
        let owner = claims::Contents::of(&read(&file, &path)?).owner.filter(|_| locked == Some(false));
        if locked.is_none() || owner.is_some_and(|owner| owner.is_at_work()) {
            let output = self.partial.join(output);
            return Err(Error::Busy(format!(
                "{}: another process is at work on this output; give each output to one",
                output.display()
            )));
        }
        if let Some(owner) = self.owner() {
            // A line that a crash cut short is ended by the first byte.
            append(&file, &path, &format!("\n{}", json(&Line::Owner { owner })?))?;
        }
        self.kept.push((path, file));
        Ok(())
    }
}
