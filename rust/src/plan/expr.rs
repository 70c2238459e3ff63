//! What a task reads: a tensor of an input file or an expression over others; and the tables of row gathers.
use crate::methods::Method;
use safetensors::Dtype;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Something with a shape and elements. A row lies along the last axis; in a vector, each element is a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A tensor of an input file, `[input, "name"]`.
    Tensor(usize, String),
    /// An expression over others, `{"rows": {...}}`.
    Made(Box<Made>),
}

/// An expression over other expressions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Made {
    /// A range of rows: one expert of a fused tensor, q of qkv.
    Rows {
        /// The source.
        of: Expr,
        /// First row.
        from: usize,
        /// End row, exclusive.
        to: usize,
    },
    /// A range of columns of a matrix.
    Columns {
        /// The source.
        of: Expr,
        /// First column.
        from: usize,
        /// End column, exclusive.
        to: usize,
    },
    /// Rows of several expressions, concatenated: experts into a fused tensor.
    Stack(Vec<Expr>),
    /// A transposed matrix.
    Transpose(Expr),
    /// The mean of all rows, as one row.
    Mean(Expr),
    /// Rows in another order, some of them filled: a re-indexed vocabulary.
    Gather {
        /// The source.
        of: Expr,
        /// Key in `tables`.
        table: String,
    },
    /// Rounded to another float dtype.
    Cast {
        /// The source.
        of: Expr,
        /// The target dtype.
        to: Dtype,
    },
    /// `W + scale * B A`; with a magnitude, each row is then scaled to that norm (`DoRA`).
    Lora {
        /// W, a matrix of any shape.
        of: Expr,
        /// A, [rank, columns of W].
        a: Expr,
        /// B, [rows of W, rank].
        b: Expr,
        /// Factor of B A.
        scale: f64,
        /// Norm of each row of the result (`DoRA`).
        magnitude: Option<Expr>,
    },
    /// Codes times scales: weights stored as 8-bit floats.
    Scaled {
        /// The codes: a tensor of a file.
        of: Expr,
        /// The scales: one per block of each matrix of the last two axes.
        by: Expr,
        /// Rows and columns that one scale covers; blocks at the edges may be smaller.
        block: [usize; 2],
    },
    /// The result of a method: a stage of a recipe.
    Merged {
        /// The method.
        by: Method,
        /// Its sources.
        of: Vec<Expr>,
        /// The name by which it draws random numbers; `None` is that of the tensor it is read for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drawn_as: Option<String>,
    },
}

/// The origin of each row of a gather: every row is in exactly one run or fill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Rows of the result.
    pub rows: usize,
    /// First row of the result, first row of the source, number of rows.
    pub runs: Vec<(usize, usize, usize)>,
    /// Row of the result, and how it is filled.
    #[serde(default)]
    pub fills: Vec<(usize, Fill)>,
}

/// How a row that the source lacks is filled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Zeros.
    Zero,
    /// The mean of rows of other expressions.
    Mean(Vec<(Expr, usize)>),
}

impl Expr {
    /// Returns the expressions directly below this one.
    pub fn parts(&self) -> Vec<&Self> {
        let Self::Made(made) = self else { return Vec::new() };
        match &**made {
            Made::Rows { of, .. } | Made::Columns { of, .. } | Made::Gather { of, .. } | Made::Cast { of, .. } => {
                vec![of]
            }
            Made::Transpose(of) | Made::Mean(of) => vec![of],
            Made::Stack(of) | Made::Merged { of, .. } => of.iter().collect(),
            Made::Lora { of, a, b, magnitude, .. } => [of, a, b].into_iter().chain(magnitude).collect(),
            Made::Scaled { of, by, .. } => vec![of, by],
        }
    }

    /// Returns the expressions directly below this one, mutably.
    fn parts_mut(&mut self) -> Vec<&mut Self> {
        let Self::Made(made) = self else { return Vec::new() };
        match &mut **made {
            Made::Rows { of, .. } | Made::Columns { of, .. } | Made::Gather { of, .. } | Made::Cast { of, .. } => {
                vec![of]
            }
            Made::Transpose(of) | Made::Mean(of) => vec![of],
            Made::Stack(of) | Made::Merged { of, .. } => of.iter_mut().collect(),
            Made::Lora { of, a, b, magnitude, .. } => [of, a, b].into_iter().chain(magnitude).collect(),
            Made::Scaled { of, by, .. } => vec![of, by],
        }
    }

    /// Visits this expression and everything below it.
    pub fn visit<'e>(&'e self, see: &mut impl FnMut(&'e Self)) {
        see(self);
        self.parts().into_iter().for_each(|part| part.visit(see));
    }

    /// Replaces every input number.
    pub(super) fn renumber(&mut self, number: &mut impl FnMut(usize) -> usize) {
        if let Self::Tensor(input, _) = self {
            *input = number(*input);
        }
        self.parts_mut().into_iter().for_each(|part| part.renumber(number));
    }

    /// Returns its name in the plan.
    pub fn kind(&self) -> &'static str {
        let Self::Made(made) = self else { return "tensor" };
        match &**made {
            Made::Rows { .. } => "rows",
            Made::Columns { .. } => "columns",
            Made::Stack(_) => "stack",
            Made::Transpose(_) => "transpose",
            Made::Mean(_) => "mean",
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

// Not `untagged`, which would only report that no variant matches, not which field is unknown.
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
