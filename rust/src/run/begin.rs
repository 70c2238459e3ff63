//! Begins the work of a plan in a place, or goes on with what is there; alone, or beside processes that do the same.
use super::claims;
use super::head::{Contents, Head, Line, MARK, NAME, json};
use super::lock::Lock;
use super::place::remove;
use super::writer::{INDEX, holds_outputs_alone};
use crate::error::{Error, Result};
use crate::plan::Plan;
use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What stands in a partial directory.
#[derive(Debug)]
pub enum Found {
    /// Nothing to resume: no directory, an empty one, or one in which nothing was finished.
    Nothing,
    /// Work of this plan, or of another that has some of its tensors: how many are claimed. Inputs may have been written
    /// anew since, and then nothing is claimed that was made of them.
    Claims(usize),
    /// Work of a plan that has nothing in common with this one.
    OtherPlan,
    /// A directory of mol's, whose journal was damaged or is of another version.
    Unreadable,
    /// Something that mol did not make.
    Foreign,
}

/// What a place holds, of the view of a plan. A last line that a crash cut short is dropped.
pub fn inspect(lock: &mut Lock, plan: &Plan) -> Result<Found> {
    Ok(look(lock, plan, &Head::of(plan)?)?.0)
}

fn look(lock: &mut Lock, plan: &Plan, wanted: &Head) -> Result<(Found, Contents)> {
    lock.find()?;
    let nothing = Contents::default();
    let mut text = lock.journal_bytes()?;
    let vacant = text.is_none() && lock.is_vacant()?;
    if text.is_none() && !vacant {
        // Another process may have begun there since.
        lock.find()?;
        text = lock.journal_bytes()?;
    }
    let Some(text) = text else {
        return Ok((if vacant { Found::Nothing } else { Found::Foreign }, nothing));
    };
    let begun = text.contains(&b'\n');
    if !text.starts_with(MARK) {
        // Killed before its first line was whole, before anything else was made. An empty file could be anybody's: after a
        // power cut without `sync` shards may be there, which are known by their headers.
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

/// How many tasks of a plan are claimed in a directory, and how many there are of whatever plan.
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

/// Begins a plan in a place that this process has alone, or goes on with it. With `sync` the mark is on the disk before
/// anything else is made there.
pub(crate) fn begin(lock: &mut Lock, plan: &Plan, head: &Head, sync: bool) -> Result<()> {
    write_head(lock, plan, head, sync)?;
    if let Some(owner) = lock.owner() {
        lock.append(&Line::Owner { owner })?;
    }
    if sync { lock.sync_journal() } else { Ok(()) }
}

pub(super) fn write_head(lock: &mut Lock, plan: &Plan, head: &Head, sync: bool) -> Result<()> {
    let place = lock.partial().display().to_string();
    let (found, contents) = look(lock, plan, head)?;
    match found {
        Found::Nothing | Found::Claims(_) => {}
        Found::OtherPlan => {
            return Err(Error::Merge(format!("{place}: holds the unfinished work of another plan")));
        }
        Found::Unreadable => return Err(Error::Merge(format!("{place}: holds a journal that cannot be read"))),
        Found::Foreign => return Err(Error::Merge(format!("{place}: holds files that are not mol's"))),
    }
    let mut file = lock.hold(sync)?;
    let path = lock.partial().join(NAME);
    let first = json(head)?;
    let mut set = || {
        if contents.head.is_none() {
            // Over what a crash left of it, so that the mark is there at every moment.
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
    Ok(())
}

/// Removes the output files of earlier work that this one does not have.
fn drop_stale(partial: &Path, before: &Head, now: &Head) -> Result<()> {
    for output in before.outputs().filter(|output| !now.outputs.iter().any(|name| name == output)) {
        remove(&partial.join(output))?;
        remove(&partial.join(claims::name(output)))?;
    }
    if now.outputs.len() < 2 { remove(&partial.join(INDEX)) } else { Ok(()) }
}
