//! The safetensors container, read and written with nothing in a file believed.
//!
//! `u64` header length, a JSON header of tensors and metadata, then the tensors' bytes without gap
//! or overlap. Every offset is checked against the file before it is used, names may come once
//! only, and a file is never read beyond what its header proves. The format's own crate is not
//! used: its messages name no tensor, and repeated names pass through it silently.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use neural_forecast_runtime::device::WeightType;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};

/// Longest header in bytes. A network of ten thousand tensors needs one; the format's own limit
/// of 100 MB would let a file of garbage take hundreds of megabytes to refuse.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// Most axes of a tensor.
const RANK_MAX: usize = 8;

/// Key of the metadata in the header.
const METADATA: &str = "__metadata__";

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ElementType {
    /// What a weight may be.
    Float(WeightType),
    /// 64-bit signed integers.
    I64,
    /// Known to the format, of this many bytes, and not used here.
    Other(usize),
}

impl ElementType {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => ElementType::Float(WeightType::F64),
            "F32" => ElementType::Float(WeightType::F32),
            "F16" => ElementType::Float(WeightType::F16),
            "BF16" => ElementType::Float(WeightType::Bf16),
            "I64" => ElementType::I64,
            "U64" => ElementType::Other(8),
            "I32" | "U32" => ElementType::Other(4),
            "I16" | "U16" => ElementType::Other(2),
            "I8" | "U8" | "BOOL" | "F8_E5M2" | "F8_E4M3" => ElementType::Other(1),
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            ElementType::Float(WeightType::F64) | ElementType::I64 => 8,
            ElementType::Float(WeightType::F32) => 4,
            ElementType::Float(WeightType::F16 | WeightType::Bf16) => 2,
            ElementType::Other(bytes) => bytes,
        }
    }
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    /// Element type.
    pub dtype: ElementType,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A checked header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// Metadata strings.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// Reads and checks the header of a file's bytes.
///
/// # Errors
/// Checkpoint: what is not as the format says, with the tensor's name, without the file's.
pub(crate) fn parse(file: &[u8]) -> Result<Header> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(wrong(format!("{} bytes, expected a header of at least 8", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX || length > rest.len() as u64 {
        return Err(wrong(format!(
            "header of {length} bytes, expected at most {} (is it a safetensors file?)",
            HEADER_BYTES_MAX.min(rest.len() as u64)
        )));
    }
    let (header, data) = rest.split_at(length as usize);
    let text = std::str::from_utf8(header)
        .map_err(|error| wrong(format!("header is not UTF-8 at byte {}", error.valid_up_to())))?;
    let entries: Entries = serde_json::from_str(text)
        .map_err(|error| wrong(format!("header is not what safetensors has: {error}")))?;
    let first = 8 + header.len();
    let mut checked = Header { metadata: entries.metadata, tensors: BTreeMap::new() };
    for (name, entry) in entries.tensors {
        let info = entry.check(&name, first, data.len())?;
        checked.tensors.insert(name, info);
    }
    check_cover(&checked, first, file.len())?;
    Ok(checked)
}

/// Tensors must cover the data without gap or overlap.
fn check_cover(header: &Header, first: usize, end: usize) -> Result<()> {
    let mut order: Vec<(&String, &Range<usize>)> =
        header.tensors.iter().map(|(name, info)| (name, &info.range)).collect();
    order.sort_by_key(|(_, range)| (range.start, range.end));
    let mut covered = first;
    let mut before = None;
    for (name, range) in order {
        if range.start < covered {
            let before = before.unwrap_or(name);
            return Err(wrong(format!("tensors `{before}` and `{name}` overlap")));
        }
        if range.start > covered {
            let gap = range.start - covered;
            return Err(wrong(format!("{gap} bytes before tensor `{name}` belong to no tensor")));
        }
        covered = range.end;
        before = Some(name);
    }
    if covered < end {
        let rest = end - covered;
        return Err(wrong(format!("{rest} bytes after the last tensor belong to no tensor")));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Entry {
    fn check(self, name: &str, first: usize, length: usize) -> Result<TensorInfo> {
        let tensor = |message: String| wrong(format!("tensor `{name}`: {message}"));
        let Some(dtype) = ElementType::from_name(&self.dtype) else {
            return Err(tensor(format!("unknown dtype `{}`", self.dtype)));
        };
        if self.shape.len() > RANK_MAX {
            let rank = self.shape.len();
            return Err(tensor(format!("{rank} axes, expected at most {RANK_MAX}")));
        }
        let [begin, end] = self.data_offsets;
        if begin > end || end > length as u64 {
            return Err(tensor(format!(
                "bytes {begin}..{end}, but the file holds {length} bytes of tensors"
            )));
        }
        let expected = self
            .shape
            .iter()
            .try_fold(dtype.bytes() as u64, |bytes, &n| bytes.checked_mul(n))
            .filter(|&bytes| bytes == end - begin);
        if expected.is_none() {
            return Err(tensor(format!(
                "shape {:?} of {} does not take {} bytes",
                self.shape,
                self.dtype,
                end - begin
            )));
        }
        // All three are below the file's length (or an axis beside a zero, which is refused).
        let shape: Option<Vec<usize>> =
            self.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        let Some(shape) = shape else {
            return Err(tensor(format!("shape {:?} is too large", self.shape)));
        };
        let range = first + begin as usize..first + end as usize;
        Ok(TensorInfo { dtype, shape, range })
    }
}

/// The header's entries, each name once.
struct Entries {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut metadata = None;
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let repeated = if name == METADATA {
                metadata.replace(map.next_value::<Strings>()?).is_some()
            } else if tensors.contains_key(&name) {
                map.next_value::<IgnoredAny>()?;
                true
            } else {
                tensors.insert(name.clone(), map.next_value::<Entry>()?).is_some()
            };
            if repeated {
                return Err(serde::de::Error::custom(format!("`{name}` comes twice")));
            }
        }
        Ok(Entries { metadata: metadata.map(|m| m.0).unwrap_or_default(), tensors })
    }
}

/// An object of strings, each name once.
struct Strings(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(StringsVisitor)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = Strings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut strings = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            if strings.insert(name.clone(), value).is_some() {
                return Err(serde::de::Error::custom(format!("metadata `{name}` comes twice")));
            }
        }
        Ok(Strings(strings))
    }
}

/// A tensor to write: name, dtype as the format names it, shape, bytes.
pub(crate) struct TensorToWrite<'a> {
    pub name: &'a str,
    pub dtype: WeightType,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// The bytes before the tensors of a file that holds `tensors` in this order. The data begins at a
/// multiple of 64, so that a mapped file's tensors are aligned if their sizes are.
pub(crate) fn header_bytes(
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorToWrite<'_>],
) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    header.insert(METADATA.to_owned(), serde_json::json!(metadata));
    let mut begin = 0;
    for tensor in tensors {
        let dtype = match tensor.dtype {
            WeightType::F32 => "F32",
            WeightType::F16 => "F16",
            WeightType::Bf16 => "BF16",
            WeightType::F64 => "F64",
        };
        let end = begin + tensor.bytes.len();
        let entry = serde_json::json!({
            "dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end],
        });
        header.insert(tensor.name.to_owned(), entry);
        begin = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    let padded = (8 + text.len()).next_multiple_of(64) - 8;
    text.resize(padded, b' ');
    if text.len() as u64 > HEADER_BYTES_MAX {
        let found = text.len();
        return Err(wrong(format!("header of {found} bytes, expected {HEADER_BYTES_MAX} at most")));
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

#[cold]
fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Checkpoint, message)
}
