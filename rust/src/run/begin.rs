//! Starts or resumes the work of a plan in a partial directory, alone or together with other processes of the same
//! plan.
use super::claims;
use super::head::{Contents, Head, Line, MARK, NAME, json};
use super::lock::Lock;
use super::paths::remove;
use super::writer::{INDEX, holds_outputs_alone};
use crate::error::{Error, Result};
use crate::plan::{Plan, directory_of};
use crate::store::SCRATCH;
use std::collections::HashMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a partial directory contains.
#[derive(Debug)]
pub enum Found {
    /// Nothing to resume: no directory, an empty one, or one in which nothing was finished.
    Nothing,
    /// Work of this plan, or of another one with some of its tensors: the number of claims. Claims made from inputs
    /// that have been written since do not count.
    Claims(usize),
    /// Work of a plan that shares no task with this one.
    OtherPlan,
    /// A partial directory of mol's whose journal is damaged or of another version.
    Unreadable,
    /// Files that mol did not write.
    Foreign,
}

/// Determines what a directory contains, with respect to a plan. A last line truncated by a crash is dropped.
pub fn inspect(lock: &mut Lock, plan: &Plan) -> Result<Found> {
    Ok(look(lock, plan, &Head::of(plan, &claims::keys(plan)?)?)?.0)
}

fn look(lock: &mut Lock, plan: &Plan, wanted: &Head) -> Result<(Found, Contents)> {
    lock.find()?;
    let nothing = Contents::default();
    let mut text = lock.journal_bytes()?;
    let vacant = text.is_none() && lock.is_vacant()?;
    if text.is_none() && !vacant {
        // Another process may have started there since.
        lock.find()?;
        text = lock.journal_bytes()?;
    }
    let Some(text) = text else {
        return Ok((if vacant { Found::Nothing } else { Found::Foreign }, nothing));
    };
    let begun = text.contains(&b'\n');
    if !text.starts_with(MARK) {
        // Killed before its first line was complete, so nothing else exists. An empty file could be anyone's: after a
        // power cut without `sync` there may be shards, recognised by their headers.
        let torn = !begun && MARK.starts_with(&text);
        let torn = torn && (!text.is_empty() || lock.is_vacant()? || holds_outputs_alone(plan, lock.partial())?);
        return Ok((if torn { Found::Nothing } else { Found::Foreign }, nothing));
    }
    let contents = Contents::of(&text);
    let found = match &contents.head {
        None if begun => Found::Unreadable,
        None => Found::Nothing,
        Some(head) => match count(plan, head, lock.partial())? {
            (0, 0) => Found::Nothing,
            (0, _) if head.plan != wanted.plan => Found::OtherPlan,
            (ours, _) => Found::Claims(ours),
        },
    };
    Ok((found, contents))
}

/// Counts the claims for tasks of a plan in a directory, and the claims for tasks of any plan.
fn count(plan: &Plan, head: &Head, partial: &Path) -> Result<(usize, usize)> {
    let read = |output| Ok((output, claims::Contents::read(partial, output)?.claims));
    let mut claimed: HashMap<&str, _> = head.outputs().map(read).collect::<Result<_>>()?;
    let all = claimed.values().map(HashMap::len).sum();
    if all == 0 {
        return Ok((0, 0));
    }
    let mut ours = 0;
    let (tasks, keys) = (crate::layout::safetensors::tasks_of_outputs(plan), claims::keys(plan)?);
    for (output, tasks) in plan.outputs.iter().zip(tasks) {
        // The journal may be that of a plan with other outputs.
        let found = match claimed.remove(&*output.name) {
            Some(found) => found,
            None => read(&output.name)?.1,
        };
        for key in &keys[tasks] {
            let claim = found.get(key);
            ours += usize::from(claim.is_some_and(|claim| claim.finite || plan.allow_nonfinite));
        }
    }
    Ok((ours, all))
}

/// Starts or resumes a plan in a directory held exclusively. With `sync` the journal's first line is on disk before
/// anything else is created there.
pub(crate) fn begin(lock: &mut Lock, plan: &Plan, head: &Head, sync: bool) -> Result<()> {
    write_head(lock, plan, head, sync)?;
    if let Some(owner) = lock.owner() {
        lock.append(&Line::Owner { owner })?;
    }
    if sync { lock.sync_journal() } else { Ok(()) }
}

pub(super) fn write_head(lock: &mut Lock, plan: &Plan, head: &Head, sync: bool) -> Result<()> {
    let partial = lock.partial().display().to_string();
    let (found, contents) = look(lock, plan, head)?;
    match found {
        Found::Nothing | Found::Claims(_) => {}
        Found::OtherPlan => {
            return Err(Error::Merge(format!("{partial}: contains unfinished work of another plan")));
        }
        Found::Unreadable => return Err(Error::Merge(format!("{partial}: contains a journal that cannot be parsed"))),
        Found::Foreign => return Err(Error::Merge(format!("{partial}: contains files that are not mol's"))),
    }
    let mut file = lock.hold(sync)?;
    // Left by an earlier process: no other one works here now.
    remove(&lock.partial().join(SCRATCH))?;
    let path = lock.partial().join(NAME);
    let first = json(head)?;
    let mut set = || {
        if contents.head.is_none() {
            // Written over the remains of a crash, so that the mark exists at every moment.
            file.write_all_at(first.as_bytes(), 0)?;
        }
        file.set_len(contents.head.as_ref().map_or(first.len() as u64, |_| contents.end))?;
        file.seek(SeekFrom::End(0))
    };
    set().map_err(Error::io(&path))?;
    if let Some(before) = contents.head.filter(|before| before != head) {
        drop_stale(lock.partial(), &before, head)?;
        file.write_all(first.as_bytes()).map_err(Error::io(&path))?;
    }
    let directories = head.directories().into_iter().filter(|directory| !directory.is_empty());
    directories.map(|directory| lock.partial().join(directory)).try_for_each(|path| own_directory(&path))
}

/// Creates the directory of a result; what is at its path but is no directory, such as a link, is removed.
fn own_directory(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        return Ok(());
    }
    remove(path)?;
    fs::create_dir(path).map_err(Error::io(path))
}

/// Removes output files of earlier work that this plan does not have.
fn drop_stale(partial: &Path, before: &Head, now: &Head) -> Result<()> {
    let directories = now.directories();
    for directory in before.directories() {
        if !directories.contains(directory) && !directory.is_empty() {
            remove(&partial.join(directory))?;
        }
    }
    for output in before.outputs().filter(|output| !now.outputs.iter().any(|name| name == output)) {
        remove(&partial.join(output))?;
        remove(&partial.join(claims::name(output)))?;
    }
    for directory in before.directories() {
        if now.outputs().filter(|output| directory_of(output) == directory).count() < 2 {
            remove(&partial.join(directory).join(INDEX))?;
        }
    }
    Ok(())
}
