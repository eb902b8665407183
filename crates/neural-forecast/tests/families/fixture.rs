//! Fixtures: one small network each, with weights, inputs and outputs as its framework made them.
//!
//! A reader for files that this project wrote itself; it trusts them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neural_forecast_runtime::device::{WeightSource, WeightType, WeightView};
use neural_forecast_runtime::reference::Tensor;
use serde_json::Value;

/// One file: a network's weights (`w.…`), its inputs (`in.…`) and outputs (`out.…`).
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) config: Value,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Fixture {
    pub(crate) fn read(path: &Path) -> Fixture {
        let file = std::fs::read(path).unwrap();
        let (size, rest) = file.split_at(8);
        let size = u64::from_le_bytes(size.try_into().unwrap()) as usize;
        let (header, data) = rest.split_at(size);
        let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
        let config = header["__metadata__"]["config"].as_str().unwrap();
        let tensors = header.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, h)| {
            let numbers = |key: &str| -> Vec<usize> {
                let list = h[key].as_array().unwrap().iter();
                list.map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let range = numbers("data_offsets");
            let stored = Stored {
                dtype: h["dtype"].as_str().unwrap().to_owned(),
                shape: numbers("shape"),
                bytes: data[range[0]..range[1]].to_vec(),
            };
            (name.clone(), stored)
        });
        Fixture {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            config: serde_json::from_str(config).unwrap(),
            tensors: tensors.collect(),
        }
    }

    pub(crate) fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        let stored = self.tensors.get(name).unwrap_or_else(|| panic!("{} has {name}", self.name));
        let data: Vec<f64> = match stored.dtype.as_str() {
            "F32" => {
                let chunks = stored.bytes.as_chunks::<4>().0.iter();
                chunks.map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            "I64" => {
                let chunks = stored.bytes.as_chunks::<8>().0.iter();
                chunks.map(|b| i64::from_le_bytes(*b) as f64).collect()
            }
            other => panic!("{name} is {other}"),
        };
        Tensor::new(stored.shape.clone(), data)
    }

    pub(crate) fn config<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.config.clone()).unwrap()
    }
}

impl WeightSource for Fixture {
    fn weight(&self, name: &str) -> Option<WeightView<'_>> {
        let stored = self.tensors.get(&format!("w.{name}"))?;
        let (shape, bytes) = (stored.shape.as_slice(), stored.bytes.as_slice());
        (stored.dtype == "F32").then_some(WeightView { dtype: WeightType::F32, shape, bytes })
    }
}

/// All fixtures whose names begin so: the committed ones, which must exist, and the shared ones.
pub(crate) fn fixtures(prefix: &str) -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let committed = found(&root.join("tests/fixtures/modules"), prefix);
    assert!(!committed.is_empty(), "no committed fixture `{prefix}…`");
    let shared = found(&root.join("../shared/fixtures/modules"), prefix);
    if shared.is_empty() {
        println!("skipped: no shared fixture `{prefix}…`");
    }
    committed.iter().chain(&shared).map(|path| Fixture::read(path)).collect()
}

fn found(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(prefix) && name.ends_with(".safetensors")
        })
        .collect();
    paths.sort();
    paths
}
