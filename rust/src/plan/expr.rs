//! What a task reads: a tensor of an input file, or what is made of other expressions; and the tables of row gathers.
use crate::methods::Method;
use safetensors::Dtype;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Something that has a shape and elements. A row is what lies along the last axis; of a vector, one element.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A tensor of an input file, `[input, "name"]`.
    Tensor(usize, String),
    /// What is made of others, `{"rows": {...}}`.
    Made(Box<Made>),
}

/// What is made of other expressions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Made {
    /// Some rows: an expert of a fused tensor, q of qkv.
    Rows {
        /// Of what.
        of: Expr,
        /// The first.
        from: usize,
        /// The one after the last.
        to: usize,
    },
    /// Some columns of a matrix.
    Columns {
        /// Of what.
        of: Expr,
        /// The first.
        from: usize,
        /// The one after the last.
        to: usize,
    },
    /// Rows of several, one after the other: experts into a fused tensor.
    Stack(Vec<Expr>),
    /// A matrix with rows and columns exchanged.
    Transpose(Expr),
    /// Rows in another order, and some that are made: a vocabulary indexed anew.
    Gather {
        /// Of what.
        of: Expr,
        /// Which of `tables`.
        table: String,
    },
    /// Rounded to another float dtype.
    Cast {
        /// Of what.
        of: Expr,
        /// The dtype.
        to: Dtype,
    },
    /// `W + scale * B A`; with a magnitude, each row scaled to that norm (`DoRA`).
    Lora {
        /// W, of any number of rows and columns.
        of: Expr,
        /// A: rank rows, W's columns.
        a: Expr,
        /// B: W's rows, rank columns.
        b: Expr,
        /// Factor on B A.
        scale: f64,
        /// One for each row.
        magnitude: Option<Expr>,
    },
    /// Codes times scales: the weights behind 8-bit floats.
    Scaled {
        /// The codes: a tensor of a file.
        of: Expr,
        /// The scales: one for each block of each matrix of the last two axes.
        by: Expr,
        /// Rows and columns that one scale covers; at the ends of a matrix they may be fewer.
        block: [usize; 2],
    },
    /// The result of a method: a stage.
    Merged {
        /// The method.
        by: Method,
        /// What it is done to.
        of: Vec<Expr>,
    },
}

/// Where each row of a gather comes from: every row is in one run or is one fill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Rows of the result.
    pub rows: usize,
    /// First row of the result, first row of the source, how many.
    pub runs: Vec<(usize, usize, usize)>,
    /// Row of the result, and how it is made.
    #[serde(default)]
    pub fills: Vec<(usize, Fill)>,
}

/// How a row is made that the source lacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Zeros.
    Zero,
    /// The mean of rows of expressions.
    Mean(Vec<(Expr, usize)>),
}

impl Expr {
    /// The expressions that this one is made of.
    pub fn parts(&self) -> Vec<&Self> {
        let Self::Made(made) = self else { return Vec::new() };
        match &**made {
            Made::Rows { of, .. } | Made::Columns { of, .. } | Made::Gather { of, .. } | Made::Cast { of, .. } => {
                vec![of]
            }
            Made::Transpose(of) => vec![of],
            Made::Stack(of) | Made::Merged { of, .. } => of.iter().collect(),
            Made::Lora { of, a, b, magnitude, .. } => [of, a, b].into_iter().chain(magnitude).collect(),
            Made::Scaled { of, by, .. } => vec![of, by],
        }
    }

    /// The same, to change them.
    fn parts_mut(&mut self) -> Vec<&mut Self> {
        let Self::Made(made) = self else { return Vec::new() };
        match &mut **made {
            Made::Rows { of, .. } | Made::Columns { of, .. } | Made::Gather { of, .. } | Made::Cast { of, .. } => {
                vec![of]
            }
            Made::Transpose(of) => vec![of],
            Made::Stack(of) | Made::Merged { of, .. } => of.iter_mut().collect(),
            Made::Lora { of, a, b, magnitude, .. } => [of, a, b].into_iter().chain(magnitude).collect(),
            Made::Scaled { of, by, .. } => vec![of, by],
        }
    }

    /// Visits this expression and all below it.
    pub fn visit<'e>(&'e self, see: &mut impl FnMut(&'e Self)) {
        see(self);
        self.parts().into_iter().for_each(|part| part.visit(see));
    }

    /// Replaces the number of every input.
    pub(super) fn renumber(&mut self, number: &mut impl FnMut(usize) -> usize) {
        if let Self::Tensor(input, _) = self {
            *input = number(*input);
        }
        self.parts_mut().into_iter().for_each(|part| part.renumber(number));
    }

    /// What it is called in the plan.
    pub fn kind(&self) -> &'static str {
        let Self::Made(made) = self else { return "tensor" };
        match &**made {
            Made::Rows { .. } => "rows",
            Made::Columns { .. } => "columns",
            Made::Stack(_) => "stack",
            Made::Transpose(_) => "transpose",
            Made::Gather { .. } => "gather",
            Made::Cast { .. } => "cast",
            Made::Lora { .. } => "lora",
            Made::Scaled { .. } => "scaled",
            Made::Merged { .. } => "merged",
        }
    }
}

impl Serialize for Expr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Tensor(input, name) => (input, name).serialize(serializer),
            Self::Made(made) => made.serialize(serializer),
        }
    }
}

// Not `untagged`: that would only say that nothing fits, and not which field is unknown.
impl<'de> Deserialize<'de> for Expr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Expr;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[input, \"name\"] or an object with the name of an expression")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Expr, A::Error> {
                <(usize, String)>::deserialize(SeqAccessDeserializer::new(seq))
                    .map(|(input, name)| Expr::Tensor(input, name))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Expr, A::Error> {
                Made::deserialize(MapAccessDeserializer::new(map)).map(|made| Expr::Made(Box::new(made)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
