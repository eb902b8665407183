//! neuralforecast's tagged JSON: numbers, strings and arrays that live in a safetensors sidecar.
//!
//! Only the values that forecasts need are decoded; the rest of a configuration is passed over.

use serde_json::{Map, Value};

use super::safetensors::{ElementType, Header};
use crate::error::{Error, ErrorKind, Result};
use neural_forecast_runtime::device::{WeightType, WeightView};

/// Key that marks a tagged value.
pub(crate) const TAG: &str = "__nf__";

/// The tensors that pointers point to.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'a> {
    /// Checked header.
    pub header: &'a Header,
    /// The file.
    pub bytes: &'a [u8],
}

/// The tag of a value.
pub(crate) fn tag(value: &Value) -> Option<&str> {
    value.get(TAG)?.as_str()
}

/// Numbers of an array that is inline or a pointer, as f64, with its shape.
///
/// # Errors
/// Checkpoint: it is neither, or the tensor is not there or not of floats.
pub(crate) fn numbers(
    value: &Value,
    tensors: Option<Tensors<'_>>,
    what: &str,
) -> Result<(Vec<usize>, Vec<f64>)> {
    let expected = || wrong(format!("`{what}` is {}, expected an array", kind(value)));
    match tag(value) {
        Some("tensor") => {
            let key = value.get("key").and_then(Value::as_str).ok_or_else(expected)?;
            tensor_numbers(key, tensors)
        }
        Some("array") => {
            let values = value.get("values").ok_or_else(expected)?;
            let numbers = list(values, what)?;
            Ok((vec![numbers.len()], numbers))
        }
        Some("series") => numbers(value.get("data").ok_or_else(expected)?, tensors, what),
        Some("index") => {
            let numbers = list(value.get("values").ok_or_else(expected)?, what)?;
            Ok((vec![numbers.len()], numbers))
        }
        Some(_) => Err(expected()),
        None => {
            let numbers = list(value, what)?;
            Ok((vec![numbers.len()], numbers))
        }
    }
}

fn list(value: &Value, what: &str) -> Result<Vec<f64>> {
    let numbers: Option<Vec<f64>> =
        value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
    numbers.ok_or_else(|| wrong(format!("`{what}` is {}, expected numbers", kind(value))))
}

fn tensor_numbers(key: &str, tensors: Option<Tensors<'_>>) -> Result<(Vec<usize>, Vec<f64>)> {
    let found = tensors.and_then(|t| Some((t.header.tensors.get(key)?, t.bytes)));
    let Some((info, file)) = found else {
        return Err(wrong(format!("tensor `{key}` is missing")));
    };
    let bytes = file.get(info.range.clone()).unwrap_or_default();
    let numbers = match info.dtype {
        ElementType::Float(WeightType::F64) => {
            bytes.as_chunks().0.iter().map(|chunk| f64::from_le_bytes(*chunk)).collect()
        }
        ElementType::Float(dtype) => {
            let view = WeightView { dtype, shape: &info.shape, bytes };
            view.to_f32().into_iter().map(f64::from).collect()
        }
        _ => return Err(wrong(format!("tensor `{key}` holds no floats"))),
    };
    Ok((info.shape.clone(), numbers))
}

/// Strings of a plain list, a tagged index or a tagged series. Integers become their digits.
///
/// # Errors
/// Checkpoint: it is none of them.
pub(crate) fn strings(
    value: &Value,
    tensors: Option<Tensors<'_>>,
    what: &str,
) -> Result<Vec<String>> {
    let wrong_kind = || wrong(format!("`{what}` is {}, expected names", kind(value)));
    match tag(value) {
        Some("series") => strings(value.get("data").ok_or_else(wrong_kind)?, tensors, what),
        Some("index") => strings(value.get("values").ok_or_else(wrong_kind)?, tensors, what),
        Some("tensor") => {
            let key = value.get("key").and_then(Value::as_str).ok_or_else(wrong_kind)?;
            integers(key, tensors)
        }
        Some(_) => Err(wrong_kind()),
        None => {
            let list = value.as_array().ok_or_else(wrong_kind)?;
            let text = |value: &Value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            list.iter().map(|value| text(value).ok_or_else(wrong_kind)).collect()
        }
    }
}

fn integers(key: &str, tensors: Option<Tensors<'_>>) -> Result<Vec<String>> {
    let found = tensors.and_then(|t| Some((t.header.tensors.get(key)?, t.bytes)));
    match found {
        Some((info, file)) if info.dtype == ElementType::I64 => {
            let bytes = file.get(info.range.clone()).unwrap_or_default();
            Ok(bytes.as_chunks().0.iter().map(|x| i64::from_le_bytes(*x).to_string()).collect())
        }
        Some(_) => Err(wrong(format!("tensor `{key}` holds no integers"))),
        None => Err(wrong(format!("tensor `{key}` is missing"))),
    }
}

/// A JSON object whose fields are read by name, with messages that name them.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The fields of an object.
    pub(crate) fn of(value: &'a Value, what: &str) -> Result<Fields<'a>> {
        let object = value.as_object();
        object
            .map(Fields)
            .ok_or_else(|| wrong(format!("`{what}` is {}, expected an object", kind(value))))
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub(crate) fn needed(&self, name: &str) -> Result<&'a Value> {
        self.get(name).ok_or_else(|| wrong(format!("`{name}` is missing")))
    }

    /// A whole number; `default` where it is absent or null.
    pub(crate) fn integer(&self, name: &str, default: impl Into<Option<i64>>) -> Result<i64> {
        match (self.get(name), default.into()) {
            (Some(value), _) => {
                // Some versions write whole numbers as floats.
                let whole = || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15);
                value
                    .as_i64()
                    .or_else(|| whole().map(|x| x as i64))
                    .ok_or_else(|| self.wrong_kind(name, value, "a whole number"))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => Err(wrong(format!("`{name}` is missing"))),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn count(&self, name: &str, default: impl Into<Option<i64>>) -> Result<usize> {
        let value = self.integer(name, default)?;
        usize::try_from(value)
            .map_err(|_| wrong(format!("`{name}` is {value}, expected 0 or more")))
    }

    /// A truth value.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.wrong_kind(name, value, "true or false"))
            }
        }
    }

    /// A string.
    pub(crate) fn text(&self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.wrong_kind(name, value, "a string")),
        }
    }

    /// A list of strings; empty where it is absent.
    pub(crate) fn names(&self, name: &str) -> Result<Vec<String>> {
        self.get(name).map_or(Ok(Vec::new()), |value| strings(value, None, name))
    }

    /// A list of whole numbers.
    pub(crate) fn counts(&self, name: &str, default: &[usize]) -> Result<Vec<usize>> {
        let Some(value) = self.get(name) else { return Ok(default.to_vec()) };
        counts(value).ok_or_else(|| self.wrong_kind(name, value, "whole numbers"))
    }

    fn wrong_kind(&self, name: &str, value: &Value, expected: &str) -> Error {
        wrong(format!("`{name}` is {}, expected {expected}", kind(value)))
    }
}

/// Whole numbers of a JSON list.
pub(crate) fn counts(value: &Value) -> Option<Vec<usize>> {
    let count = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    value.as_array()?.iter().map(count).collect()
}

/// A short description of a value for messages.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("`{}`", text.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => match tag(value) {
            Some(tag) => format!("a `{}`", tag.chars().take(40).collect::<String>()),
            None => "an object".to_owned(),
        },
    }
}

#[cold]
pub(crate) fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Checkpoint, message)
}
