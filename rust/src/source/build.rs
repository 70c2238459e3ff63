//! Builds the source that an expression describes and refuses what does not fit; reads no tensor data yet.
use super::gather::{Cast, From, Gather, Segment};
use super::lora::Lora;
use super::mean::Mean;
use super::merged::Merged;
use super::scaled::Scaled;
use super::shape::{Columns, Rows, Stack, Transpose};
use super::spilled::Stages;
use super::{Source, Tensor, two};
use crate::container::{Container, Header};
use crate::draw;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::methods::Method;
use crate::plan::{Expr, Fill, Made, Plan, Table, matrix};
use std::sync::Arc;

/// Opens an input of the plan.
pub type Open<'a> = &'a dyn Fn(usize) -> Result<Arc<Container>>;

/// A source, and the shape of its result.
pub(super) type Built = (Box<dyn Source>, Vec<usize>);

fn fault(expr: &Expr, reason: impl AsRef<str>) -> Error {
    Error::Merge(format!("`{}`: {}", expr.kind(), reason.as_ref()))
}

/// Builds the source of an expression; returns it with its shape.
pub fn build(plan: &Plan, expr: &Expr, open: Open, stages: &Stages) -> Result<Built> {
    stages.build(expr, || computed(plan, expr, open, stages))
}

/// Builds the source of an expression from headers alone: it has a shape, a format and a size, and no element can be read.
/// The check of a plan, the memory budget and the disk space each build their own: that reads no data.
pub fn measured(plan: &Plan, expr: &Expr, headers: &[Arc<Header>]) -> Result<Built> {
    let open = |input: usize| Ok(Arc::new(Container::unopened(&headers[input])));
    build(plan, expr, &open, &Stages::default())
}

/// Builds a source that computes an expression whenever it is read.
fn computed(plan: &Plan, expr: &Expr, open: Open, stages: &Stages) -> Result<Built> {
    let made = match expr {
        Expr::Tensor(input, name) => {
            let tensor = Tensor::new(&open(*input)?, name)?;
            let shape = tensor.entry().shape.clone();
            return Ok((Box::new(tensor), shape));
        }
        Expr::Made(made) => &**made,
    };
    let build = |expr: &Expr| build(plan, expr, open, stages);
    match made {
        Made::Rows { of, from, to } => {
            let (of, shape) = build(of)?;
            let (rows, columns) = matrix(&shape);
            within(expr, "rows", *from, *to, rows)?;
            let shape = with_rows(&shape, to - from);
            Ok((Box::new(Rows { of, from: from * columns, shape: two(&shape) }), shape))
        }
        Made::Columns { of, from, to } => {
            let (of, shape) = build(of)?;
            let [.., columns] = shape[..] else { return Err(fault(expr, "of a scalar, wanted a matrix")) };
            if shape.len() < 2 {
                return Err(fault(expr, "of a vector, which has no columns: each element is a row"));
            }
            within(expr, "columns", *from, *to, columns)?;
            let shape = vec![matrix(&shape).0, to - from];
            Ok((Box::new(Columns { of, from: *from, shape: two(&shape) }), shape))
        }
        Made::Stack(parts) => stack(expr, parts.iter().map(build).collect::<Result<_>>()?),
        Made::Transpose(of) => {
            let (of, shape) = build(of)?;
            let [rows, columns] = shape[..] else {
                return Err(fault(expr, format!("has shape {shape:?}, wanted a matrix")));
            };
            Ok((Box::new(Transpose { of }), vec![columns, rows]))
        }
        Made::Mean(of) => {
            let (of, shape) = build(of)?;
            let (rows, columns) = matrix(&shape);
            if rows == 0 {
                return Err(fault(expr, "of no rows"));
            }
            let shape = if shape.len() < 2 { vec![1] } else { vec![1, columns] };
            Ok((Box::new(Mean { of, rows, columns, made: None }), shape))
        }
        Made::Gather { of, table } => {
            let of = build(of)?;
            gather(expr, of, &plan.tables[table], &build)
        }
        Made::Cast { of, to } => {
            let (of, shape) = build(of)?;
            let to = Float::of(*to).ok_or_else(|| fault(expr, format!("to {to}, which is not a float format")))?;
            Ok((Box::new(Cast { of, to }), shape))
        }
        Made::Lora { of, a, b, scale, magnitude } => {
            let parts = [build(of)?, build(a)?, build(b)?];
            lora(expr, parts, *scale, magnitude.as_ref().map(build).transpose()?)
        }
        Made::Scaled { of, by, block } => {
            let Expr::Tensor(input, name) = of else {
                return Err(fault(expr, format!("of `{}`, wanted a tensor of codes", of.kind())));
            };
            let codes = Tensor::coded(&open(*input)?, name)?;
            scaled(expr, codes, build(by)?, *block)
        }
        Made::Merged { by, of, drawn_as } => {
            let of = of.iter().map(build).collect::<Result<_>>()?;
            let key = drawn_as.as_ref().map(|name| draw::key(plan.seed, name));
            merged(expr, by, of, key, plan.allow_nonfinite)
        }
    }
}

/// Returns the shape with another number of rows.
fn with_rows(shape: &[usize], rows: usize) -> Vec<usize> {
    if shape.len() < 2 { vec![rows] } else { vec![rows, matrix(shape).1] }
}

fn within(expr: &Expr, what: &str, from: usize, to: usize, all: usize) -> Result<()> {
    if from <= to && to <= all {
        Ok(())
    } else {
        Err(fault(expr, format!("{what} {from} to {to}, but there are {all}")))
    }
}

fn stack(expr: &Expr, parts: Vec<Built>) -> Result<Built> {
    let Some((first, shape)) = parts.first() else { return Err(fault(expr, "has no sources")) };
    let (float, shape, mut rows) = (first.float(), shape.clone(), 0usize);
    for (part, theirs) in &parts {
        if (theirs.len() < 2, matrix(theirs).1) != (shape.len() < 2, matrix(&shape).1) {
            return Err(fault(expr, format!("shapes {shape:?} and {theirs:?} differ in more than rows")));
        }
        if part.float() != float {
            return Err(fault(expr, format!("of {float:?} and {:?}; `cast` one to the other", part.float())));
        }
        rows += matrix(theirs).0;
    }
    let shape = with_rows(&shape, rows);
    let parts = parts.into_iter().map(|(part, _)| part).collect();
    Ok((Box::new(Stack::new(parts, two(&shape))), shape))
}

fn gather(expr: &Expr, (of, shape): Built, table: &Table, build: &dyn Fn(&Expr) -> Result<Built>) -> Result<Built> {
    let (rows, row) = matrix(&shape);
    let mut segments: Vec<Segment> = Vec::new();
    for (to, from, count) in &table.runs {
        let end = from.checked_add(*count).unwrap_or(usize::MAX);
        within(expr, "takes rows", *from, end, rows)?;
        segments.push((*to, *count, From::Run(*from)));
    }
    for (to, fill) in &table.fills {
        let from = match fill {
            Fill::Zero => From::Zero,
            Fill::Mean(sources) => {
                let one = |(of, at): &(Expr, usize)| {
                    let (of, theirs) = build(of)?;
                    let (rows, columns) = matrix(&theirs);
                    if columns != row || *at >= rows {
                        return Err(fault(
                            expr,
                            format!("row {at} of {theirs:?} for a mean of rows of {row} elements"),
                        ));
                    }
                    Ok((of, *at))
                };
                From::Mean(sources.iter().map(one).collect::<Result<_>>()?, Vec::new())
            }
        };
        segments.push((*to, 1, from));
    }
    segments.sort_by_key(|(to, ..)| *to);
    let shape = with_rows(&shape, table.rows);
    if shape.iter().try_fold(8usize, |bits, n| bits.checked_mul(*n)).is_none() {
        return Err(fault(expr, format!("makes {shape:?}, which is more than memory holds")));
    }
    // A mean is not rounded to a 16-bit format before it is merged.
    let has_means = segments.iter().any(|(.., from)| matches!(from, From::Mean(..)));
    let float = if has_means && of.float() != Float::F64 { Float::F32 } else { of.float() };
    Ok((Box::new(Gather { of, segments, float, row, shape: two(&shape) }), shape))
}

fn lora(expr: &Expr, parts: [Built; 3], scale: f64, magnitude: Option<Built>) -> Result<Built> {
    let [(of, shape), (a, of_a), (b, of_b)] = parts;
    let (rows, columns) = matrix(&shape);
    let fits = matches!((&of_a[..], &of_b[..]), ([k, c], [r, l]) if k == l && *c == columns && *r == rows);
    if shape.len() < 2 || !fits {
        let wanted = "wanted [rank, columns] and [rows, rank]";
        return Err(fault(expr, format!("W has shape {shape:?}, A {of_a:?} and B {of_b:?}; {wanted}")));
    }
    if !scale.is_finite() {
        return Err(fault(expr, format!("scale {scale} is not finite")));
    }
    let magnitude = magnitude.map(|(magnitude, theirs)| {
        if magnitude.len() == rows {
            return Ok(magnitude);
        }
        Err(fault(expr, format!("the magnitude has shape {theirs:?}, wanted one number for each of {rows} rows")))
    });
    let magnitude = magnitude.transpose()?;
    Ok((Box::new(Lora { of, factors: [a, b], magnitude, scale, rank: of_a[0], made: None }), shape))
}

fn scaled(expr: &Expr, codes: Tensor, (scales, of_scales): Built, block: [usize; 2]) -> Result<Built> {
    let shape = codes.entry().shape.clone();
    let [leading @ .., rows, columns] = &shape[..] else {
        return Err(fault(expr, format!("codes of shape {shape:?}, wanted a matrix")));
    };
    let [high, wide] = block;
    if high == 0 || wide == 0 {
        return Err(fault(expr, format!("blocks of {block:?}, wanted at least one row and one column")));
    }
    let wanted = [leading, &[rows.div_ceil(high), columns.div_ceil(wide)]].concat();
    // Axes of length one are often left out: [rows] for [rows, 1], [] or [1] for a single scale.
    let longer = |shape: &[usize]| shape.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
    if longer(&of_scales) != longer(&wanted) {
        let reason = format!("scales of shape {of_scales:?}; blocks of {block:?} in {shape:?} want {wanted:?}");
        return Err(fault(expr, reason));
    }
    if scales.float() == Float::F64 {
        return Err(fault(expr, "scales in F64, wanted F32 or 16 bits: their products would be rounded twice"));
    }
    Ok((Box::new(Scaled::new(Box::new(codes), scales, *rows, block)), shape))
}

fn merged(expr: &Expr, by: &Method, of: Vec<Built>, key: Option<[u32; 2]>, allow_nonfinite: bool) -> Result<Built> {
    by.check(of.len()).map_err(|reason| fault(expr, reason))?;
    if matches!(by, Method::Copy(_)) && of.len() > 1 {
        return Err(fault(expr, "copies that must be equal are not compared in a stage; copy one"));
    }
    let Some((_, shape)) = of.first() else { return Err(fault(expr, "has no sources")) };
    let shape = shape.clone();
    // Experts in one tensor, [experts, rows, columns], are merged with those that are stacked, [experts * rows, columns].
    let flat = |shape: &[usize]| (shape.len() < 2, matrix(shape));
    if let Some((_, theirs)) = of.iter().find(|(_, theirs)| flat(theirs) != flat(&shape)) {
        return Err(fault(expr, format!("of shapes {shape:?} and {theirs:?}")));
    }
    let of = of.into_iter().map(|(source, _)| source).collect();
    Ok((Box::new(Merged { by: by.clone(), of, key, allow_nonfinite, kernel: None }), shape))
}
