//! Reads the tasks of a plan, which may have several results of one reading, each by its own method. A run has one task
//! per result, with its own digest and claim, so a sweep of parameters that grows or shrinks keeps its finished
//! results.
use super::{Expr, Method, Target, Task};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// A task in the plan's JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reading {
    to: Vec<Destination>,
    by: By,
    of: Vec<Expr>,
    #[serde(default)]
    with: Vec<Expr>,
}

/// Where a result is written, and which of the expressions it is made of: all, if not said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    tensor: usize,
    row: usize,
    of: Option<Vec<usize>>,
}

/// One method, or one per result.
enum By {
    One(Method),
    Each(Vec<Method>),
}

// Not `untagged`, for the same reason as `Expr`.
impl<'de> Deserialize<'de> for By {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = By;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the name of a method, or a list of such objects")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<By, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(By::Each)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<By, A::Error> {
                Method::deserialize(MapAccessDeserializer::new(map)).map(By::One)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Reads the tasks of a plan, one per result, in the order of what they write.
pub(super) fn tasks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Task>, D::Error> {
    struct Tasks;
    impl<'de> Visitor<'de> for Tasks {
        type Value = Vec<Task>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of tasks")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Task>, A::Error> {
            let (mut tasks, mut readings) = (Vec::new(), 0);
            while let Some(reading) = seq.next_element()? {
                split(reading, readings, &mut tasks)
                    .map_err(|why| A::Error::custom(format!("task {readings} {why}")))?;
                readings += 1;
            }
            // Tasks with one result must already be in order, which is checked later; further results are sorted in.
            if tasks.len() > readings {
                tasks.sort_by_key(|task: &Task| (task.to[0].tensor, task.to[0].row));
            }
            Ok(tasks)
        }
    }
    deserializer.deserialize_seq(Tasks)
}

fn split(Reading { to, by, of, with }: Reading, reading: usize, tasks: &mut Vec<Task>) -> Result<(), String> {
    let by = match by {
        By::One(method) => vec![method],
        By::Each(methods) => methods,
    };
    if to.is_empty() {
        return Err("writes nothing: every task writes a tensor, or rows of one".into());
    }
    if to.len() != by.len() {
        return Err(format!("writes {} tensors by {} methods, wanted one method for each", to.len(), by.len()));
    }
    let (last, further) = (to.len() - 1, to.into_iter().zip(by));
    let (mut of, mut with) = (of, with);
    for (result, (Destination { tensor, row, of: chosen }, by)) in further.enumerate() {
        let to = Target { tensor, row };
        let of = match chosen {
            Some(chosen) => {
                let pick = |index: &usize| of.get(*index).cloned().ok_or_else(|| missing(*index, of.len()));
                chosen.iter().map(pick).collect::<Result<_, String>>()?
            }
            None if result < last => of.clone(),
            // The last result takes the expressions: cloning them is rarely needed.
            None => std::mem::take(&mut of),
        };
        let with = if result < last { with.clone() } else { std::mem::take(&mut with) };
        tasks.push(Task { to: [to], by, of, with, reading });
    }
    Ok(())
}

fn missing(index: usize, listed: usize) -> String {
    format!("makes a result of expression {index}, but it lists {listed}")
}
