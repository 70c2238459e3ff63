//! Tasks as the plan has them: of one reading several results, each by a method of its own. A run has a task for each
//! result, which is named and claimed by itself: so a sweep that grows or shrinks keeps what is finished of it.
use super::{Expr, Method, Target, Task};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// A task as the plan has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reading {
    to: Vec<Target>,
    by: By,
    of: Vec<Expr>,
    #[serde(default)]
    with: Vec<Expr>,
}

/// A method, or one for each result.
enum By {
    One(Method),
    Each(Vec<Method>),
}

// Not `untagged`, for the same reason as an expression.
impl<'de> Deserialize<'de> for By {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = By;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the name of a method, or a list of such")
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

/// Reads the tasks of a plan, a task for each result, in the order of what they write.
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
            // Tasks of one result each have to be in order, which is checked; the further results find their places.
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
    for (result, (to, by)) in further.enumerate() {
        // The last takes the expressions, which are seldom for more than one.
        let of = if result < last { of.clone() } else { std::mem::take(&mut of) };
        let with = if result < last { with.clone() } else { std::mem::take(&mut with) };
        tasks.push(Task { to: [to], by, of, with, reading });
    }
    Ok(())
}
