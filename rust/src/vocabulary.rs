//! Takes the tokens of a `tokenizer.json` apart from the rest; its merges, the larger half of the file, are passed over.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// What a `tokenizer.json` holds.
#[derive(Debug, PartialEq)]
pub struct Vocabulary {
    /// Each token of the model with its id, in file order.
    pub ids: Vec<(String, i64)>,
    /// All but these and the merges, as JSON.
    pub rest: String,
}

impl Vocabulary {
    /// Reads a file that is what it should be; None of any other, and where a vocabulary is a list, as Unigram's.
    #[must_use]
    pub fn read(data: &[u8]) -> Option<Self> {
        let Parts { ids, model, mut rest } = serde_json::from_slice(data).ok()?;
        rest.insert("model".to_owned(), Value::Object(model?));
        Some(Self { ids: ids?, rest: serde_json::to_string(&rest).ok()? })
    }
}

#[derive(Default)]
struct Parts {
    ids: Option<Vec<(String, i64)>>,
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
                        let Model { ids, rest } = map.next_value()?;
                        (found.ids, found.model) = (ids, Some(rest));
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
    ids: Option<Vec<(String, i64)>>,
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
                let mut found = Model { ids: None, rest: Map::new() };
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "vocab" => found.ids = Some(map.next_value::<Ids>()?.0),
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

struct Ids(Vec<(String, i64)>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ids;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a map from tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ids, A::Error> {
                let mut found = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    found.push(entry);
                }
                Ok(Ids(found))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::Vocabulary;

    #[test]
    fn tokens_are_parted_from_the_rest_and_merges_are_left_out() {
        let text = r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "\u00e9": 1, "vocab": 2},
            "merges": [["a", "b"], "c d"], "byte_fallback": true}, "added_tokens": [{"id": 3, "content": "<s>"}]}"#;
        let found = Vocabulary::read(text.as_bytes()).expect("a tokenizer");
        assert_eq!(found.ids, [("a".to_owned(), 0), ("é".to_owned(), 1), ("vocab".to_owned(), 2)]);
        let rest: serde_json::Value = serde_json::from_str(&found.rest).expect("JSON");
        let wanted = serde_json::json!({"version": "1.0", "added_tokens": [{"id": 3, "content": "<s>"}],
            "model": {"type": "BPE", "byte_fallback": true}});
        assert_eq!(rest, wanted);
    }

    #[test]
    fn what_is_no_such_file_is_left_to_others() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"model": 1}"#,
            r#"{"model": {}}"#,
            r#"{"model": {"vocab": [["a", 0.5]]}}"#,
            r#"{"model": {"vocab": {"a": 1.5}}}"#,
            r#"{"model": {"vocab": {"a": 1}, "merges": [}}"#,
            r#"{"model": {"vocab": {"a": 1}}} {"#,
        ] {
            assert_eq!(Vocabulary::read(text.as_bytes()), None, "{text}");
        }
    }
}
