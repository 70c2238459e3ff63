//! Several processes in one directory, each writing its own outputs: they share the lock of the journal, and each locks
//! the claims of its outputs. A whole merge or a commit needs the directory exclusively, and is refused meanwhile.
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

/// How long to wait for a process that holds the directory exclusively: long enough for another one to start or to
/// check there, not for a whole merge.
const PATIENCE: Duration = Duration::from_secs(5);
/// Interval between attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Starts a plan in a directory together with other processes that write other outputs, and locks `outputs` for this
/// one. The first of them holds the directory exclusively for a moment, to record in the journal whose work it is.
pub(crate) fn join<'a>(
    lock: &mut Lock,
    plan: &Plan,
    head: &Head,
    outputs: impl IntoIterator<Item = &'a str>,
    sync: bool,
    watch: &Watch,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    lock.leave();
    loop {
        match write_head(lock, plan, head, sync) {
            Ok(()) | Err(Error::Busy(_)) => {}
            Err(error) => return Err(error),
        }
        let busy = match lock.share() {
            Ok(()) => match lock.contents()?.head {
                Some(theirs) if theirs == *head => break,
                Some(_) => lock.busy("another plan is being run there"),
                None => lock.busy_with_a_merge(),
            },
            Err(busy @ Error::Busy(_)) => busy,
            Err(error) => return Err(error),
        };
        // Before the pause: a lock that is held meanwhile would keep another one from writing the first line.
        lock.leave();
        if Instant::now() > until {
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
    /// Lets other processes work there too, on other outputs; or joins those that do.
    pub(crate) fn share(&mut self) -> Result<()> {
        let path = self.path();
        let file = match self.journal.take() {
            None => open_journal(&path)?,
            held => held,
        };
        // No system converts one lock into another atomically, so the directory is checked again.
        match file {
            Some(file) if self.locks(&file, &path, FlockOperation::NonBlockingLockShared)? => self.journal = Some(file),
            _ => return Err(self.busy_with_a_merge()),
        }
        Ok(())
    }

    /// Locks an output for this process in a shared directory.
    pub(crate) fn keep(&mut self, output: &str) -> Result<()> {
        let path = self.partial.join(claims::name(output));
        make_way(&path)?;
        let file = open_own(&path).map_err(Error::io(&path))?;
        let locked = flock_now(&file, &path, FlockOperation::NonBlockingLockExclusive)?;
        let owner = claims::Contents::of(&read(&file, &path)?).owner.filter(|_| locked == Some(false));
        if locked.is_none() || owner.is_some_and(|owner| owner.is_at_work()) {
            let output = self.partial.join(output);
            return Err(Error::Busy(format!(
                "{}: another process is writing this output; give each output to one process",
                output.display()
            )));
        }
        if let Some(owner) = self.owner() {
            // The first byte ends a line truncated by a crash.
            append(&file, &path, &format!("\n{}", json(&Line::Owner { owner })?))?;
        }
        self.kept.push((path, file));
        Ok(())
    }
}
