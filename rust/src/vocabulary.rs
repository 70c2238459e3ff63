//! Takes the tokens of a `tokenizer.json` apart from the rest, and adds some; its merges, the larger half of the file,
//! are passed over.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// What a `tokenizer.json` holds.
#[derive(Debug, PartialEq)]
pub struct Vocabulary {
    /// The tokens of the model.
    pub tokens: Tokens,
    /// All but these and the merges, as JSON.
    pub rest: String,
}

/// The tokens of a model, in file order.
#[derive(Debug, PartialEq)]
pub enum Tokens {
    /// Each with its id.
    Ids(Vec<(String, i64)>),
    /// Each with its score, as in a Unigram model; its position is its id.
    Scores(Vec<(String, f64)>),
}

impl Vocabulary {
    /// Reads a file that is what it should be; None of any other.
    #[must_use]
    pub fn read(data: &[u8]) -> Option<Self> {
        let Parts { tokens, model, mut rest } = serde_json::from_slice(data).ok()?;
        rest.insert("model".to_owned(), Value::Object(model?));
        Some(Self { tokens: tokens?, rest: serde_json::to_string(&rest).ok()? })
    }
}

/// Returns a file with more entries in the vocabulary of its model, and in its list of added tokens; all else is as it
/// was. Entries are JSON, without brackets. None if the file is not what it should be.
#[must_use]
pub fn extended(data: &[u8], entries: &str, added: &str) -> Option<String> {
    let mut file = parted(std::str::from_utf8(data).ok()?)?;
    let (_, model) = file.iter_mut().rfind(|(key, _)| key == "model")?;
    let whole = model.clone();
    let mut parts = parted(&whole)?;
    let (_, tokens) = parts.iter_mut().rfind(|(key, _)| key == "vocab")?;
    *tokens = appended(tokens, entries)?.into();
    *model = written(&parts)?.into();
    match file.iter_mut().rfind(|(key, _)| key == "added_tokens") {
        Some((_, list)) if list != "null" => *list = appended(list, added)?.into(),
        Some((_, none)) => *none = format!("[{added}]").into(),
        None => file.push(("added_tokens".to_owned(), format!("[{added}]").into())),
    }
    written(&file)
}

/// A map as its keys, each with its value as it is written.
type Written<'a> = Vec<(String, Cow<'a, str>)>;

fn parted(map: &str) -> Option<Written<'_>> {
    let Entries(found): Entries<&RawValue> = serde_json::from_str(map).ok()?;
    Some(found.into_iter().map(|(key, value)| (key, value.get().into())).collect())
}

/// Returns a list or a map with more entries behind its own.
fn appended(container: &str, entries: &str) -> Option<String> {
    let body = container.strip_suffix([']', '}'])?;
    let comma = if entries.is_empty() || body[1..].trim().is_empty() { "" } else { "," };
    Some([body, comma, entries, &container[body.len()..]].concat())
}

fn written(entries: &Written<'_>) -> Option<String> {
    let parts = entries.iter().map(|(key, value)| Some(format!("{}:{value}", serde_json::to_string(key).ok()?)));
    Some(format!("{{{}}}", parts.collect::<Option<Vec<_>>>()?.join(",")))
}

#[derive(Default)]
struct Parts {
    tokens: Option<Tokens>,
    model: Option<Map<String, Value>>,
    rest: Map<String, Value>,
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Parts;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts, A::Error> {
                let mut found = Parts::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "model" {
                        let Model { tokens, rest } = map.next_value()?;
                        (found.tokens, found.model) = (tokens, Some(rest));
                    } else {
                        found.rest.insert(key, map.next_value()?);
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

struct Model {
    tokens: Option<Tokens>,
    rest: Map<String, Value>,
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Model;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("the model of a tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Model, A::Error> {
                let mut found = Model { tokens: None, rest: Map::new() };
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "vocab" => found.tokens = Some(map.next_value()?),
                        "merges" => {
                            map.next_value::<IgnoredAny>()?;
                        }
                        _ => {
                            found.rest.insert(key, map.next_value()?);
                        }
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Tokens;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a map from tokens to ids, or a list of tokens with scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tokens, A::Error> {
                Listed(PhantomData).visit_map(map).map(|Entries(found)| Tokens::Ids(found))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tokens, A::Error> {
                let mut found = Vec::new();
                while let Some(entry) = list.next_element()? {
                    found.push(entry);
                }
                Ok(Tokens::Scores(found))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A map as the list of its entries.
struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Listed(PhantomData))
    }
}

struct Listed<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Listed<T> {
    type Value = Entries<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
        let mut found = Vec::new();
        while let Some(entry) = map.next_entry()? {
            found.push(entry);
        }
        Ok(Entries(found))
    }
}

#[cfg(test)]
mod tests {
    use super::{Tokens, Vocabulary, extended};
    use serde_json::{Value, json};

    #[test]
    fn tokens_are_parted_from_the_rest_and_merges_are_left_out() {
        let text = r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "\u00e9": 1, "vocab": 2},
            "merges": [["a", "b"], "c d"], "byte_fallback": true}, "added_tokens": [{"id": 3, "content": "<s>"}]}"#;
        let found = Vocabulary::read(text.as_bytes()).expect("a tokenizer");
        assert_eq!(found.tokens, Tokens::Ids(vec![("a".to_owned(), 0), ("é".to_owned(), 1), ("vocab".to_owned(), 2)]));
        let rest: Value = serde_json::from_str(&found.rest).expect("JSON");
        let wanted = json!({"version": "1.0", "added_tokens": [{"id": 3, "content": "<s>"}],
            "model": {"type": "BPE", "byte_fallback": true}});
        assert_eq!(rest, wanted);
    }

    #[test]
    fn a_list_of_tokens_has_scores() {
        let text = r#"{"model": {"vocab": [["<unk>", 0], ["a", -1.25]]}}"#;
        let found = Vocabulary::read(text.as_bytes()).expect("a tokenizer");
        assert_eq!(found.tokens, Tokens::Scores(vec![("<unk>".to_owned(), 0.0), ("a".to_owned(), -1.25)]));
    }

    #[test]
    fn entries_come_last_and_all_else_is_as_it_was() {
        let text = r#"{"model": {"x": 1e400, "vocab": {"a": 0 }, "merges": ["a b"]}, "added_tokens": [{"id": 1}]}"#;
        let found = extended(text.as_bytes(), r#""b": 2"#, r#"{"id": 2}"#).expect("a tokenizer");
        let wanted =
            r#"{"model":{"x":1e400,"vocab":{"a": 0 ,"b": 2},"merges":["a b"]},"added_tokens":[{"id": 1},{"id": 2}]}"#;
        assert_eq!(found, wanted);
        for (text, wanted) in [
            (r#"{"model": {"vocab": { }}}"#, json!({"added_tokens": [{"id": 2}], "model": {"vocab": {"b": 2}}})),
            (
                r#"{"added_tokens": null, "model": {"vocab": {"]": 0}}}"#,
                json!({"added_tokens": [{"id": 2}], "model": {"vocab": {"]": 0, "b": 2}}}),
            ),
        ] {
            let found = extended(text.as_bytes(), r#""b": 2"#, r#"{"id": 2}"#).expect("a tokenizer");
            assert_eq!(serde_json::from_str::<Value>(&found).expect("JSON"), wanted);
        }
        let list = r#"{"added_tokens": [], "model": {"vocab": [["a", 0.5]]}}"#;
        let found = extended(list.as_bytes(), r#"["b", -1.5]"#, "").expect("a tokenizer");
        assert_eq!(found, r#"{"added_tokens":[],"model":{"vocab":[["a", 0.5],["b", -1.5]]}}"#);
    }

    #[test]
    fn what_is_no_such_file_is_left_to_others() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"model": 1}"#,
            r#"{"model": {}}"#,
            r#"{"model": {"vocab": [["a"]]}}"#,
            r#"{"model": {"vocab": [["a", 0.5, 1]]}}"#,
            r#"{"model": {"vocab": {"a": 1.5}}}"#,
            r#"{"model": {"vocab": {"a": 1}, "merges": [}}"#,
            r#"{"model": {"vocab": {"a": 1}}} {"#,
        ] {
            assert_eq!(Vocabulary::read(text.as_bytes()), None, "{text}");
        }
        for text in ["", "[]", "{}", r#"{"model": 1}"#, r#"{"model": {}}"#, r#"{"model": {"vocab": 1}}"#] {
            assert_eq!(extended(text.as_bytes(), "", ""), None, "{text}");
        }
    }
}
