//! The weights of a loaded network, by the names of its plan.
//!
//! Not a parser: [`crate::checkpoint`] checks files before tensors of them end here.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use neural_forecast_runtime::device::{WeightSource, WeightType, WeightView};
use neural_forecast_runtime::sys::Map;

/// Bytes that tensors lie in.
pub(crate) trait Bytes: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Bytes for Map {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Bytes for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Named tensors, in a mapped file or in memory. Cheap to clone; the file stays mapped while any
/// clone is there.
#[derive(Clone, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Stored>,
}

#[derive(Clone)]
struct Stored {
    dtype: WeightType,
    shape: Vec<usize>,
    place: Arc<dyn Bytes>,
    range: Range<usize>,
}

impl Weights {
    /// No tensors.
    pub fn new() -> Self {
        Weights::default()
    }

    /// Sets a tensor that lies in a file.
    pub(crate) fn insert_view(
        &mut self,
        name: impl Into<String>,
        dtype: WeightType,
        shape: Vec<usize>,
        place: Arc<dyn Bytes>,
        range: Range<usize>,
    ) {
        self.tensors.insert(name.into(), Stored { dtype, shape, place, range });
    }

    /// Sets a tensor made in memory.
    ///
    /// # Panics
    /// If the shape does not hold exactly these elements.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], elements: &[f32]) {
        let name = name.into();
        let (found, expected) = (elements.len(), shape.iter().product::<usize>());
        assert_eq!(found, expected, "elements of tensor `{name}` of shape {shape:?}");
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        let range = 0..bytes.len();
        self.insert_view(name, WeightType::F32, shape.to_vec(), Arc::new(bytes), range);
    }

    /// Takes a tensor out; whether there was one.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.tensors.remove(name).is_some()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes that the tensors take where they are stored.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|stored| stored.range.len()).sum()
    }
}

impl WeightSource for Weights {
    fn weight(&self, name: &str) -> Option<WeightView<'_>> {
        let stored = self.tensors.get(name)?;
        let bytes = stored.place.bytes().get(stored.range.clone())?;
        Some(WeightView { dtype: stored.dtype, shape: &stored.shape, bytes })
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes = self.tensors.iter().map(|(name, stored)| (name, &stored.shape));
        f.debug_map().entries(shapes).finish()
    }
}
