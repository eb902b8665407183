//! Weights made in memory: a [`WeightSource`] for tests, generated models and trained ones.
//!
//! Not a file format, and not what a loaded checkpoint uses: that maps its file.

use std::collections::BTreeMap;

use crate::device::{WeightSource, WeightType, WeightView};

/// Named f32 tensors.
#[derive(Clone, Debug, Default)]
pub struct MemoryWeights {
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl MemoryWeights {
    /// No tensors.
    pub fn new() -> Self {
        MemoryWeights::default()
    }

    /// Sets the tensor of this name.
    ///
    /// # Panics
    /// If the shape does not hold exactly these elements.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], elements: &[f32]) {
        let name = name.into();
        let (found, expected) = (elements.len(), shape.iter().product::<usize>());
        assert_eq!(found, expected, "elements of tensor `{name}` of shape {shape:?}");
        let bytes = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.insert(name, (shape.to_vec(), bytes));
    }

    /// Removes a tensor; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.tensors.remove(name).is_some()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

impl WeightSource for MemoryWeights {
    fn weight(&self, name: &str) -> Option<WeightView<'_>> {
        let (shape, bytes) = self.tensors.get(name)?;
        Some(WeightView { dtype: WeightType::F32, shape, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inserted_is_found() {
        let mut weights = MemoryWeights::new();
        weights.insert("w", &[1, 2], &[1.5, -2.0]);
        let view = weights.weight("w").expect("`w` was inserted");
        assert_eq!((view.shape, view.to_f32()), (&[1, 2][..], vec![1.5, -2.0]));
        assert!(weights.weight("v").is_none());
        assert!(weights.remove("w") && !weights.remove("w"));
    }
}
