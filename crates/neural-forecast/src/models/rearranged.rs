//! A weight source over another one: tensors under other names, in other shapes, cut or permuted.
//!
//! Frameworks store some weights in an order or a fusion that plans do not take. Renaming,
//! reshaping and cutting along the first axis read the other source's bytes where they lie; only
//! what is truly permuted is held here, as f32. Not a checkpoint: it checks what it touches and
//! leaves the rest to the plan's own check of its weights.

use std::collections::BTreeMap;

use neural_forecast_runtime::PlanError;
use neural_forecast_runtime::device::{WeightSource, WeightType, WeightView};

/// Weights of `source`, with some of them made anew under the names that a plan wants.
pub struct Rearranged<'a> {
    source: &'a dyn WeightSource,
    made: BTreeMap<String, Made>,
}

enum Made {
    /// Elements `first ..` of another tensor, as many as the shape holds.
    View { of: String, first: usize, shape: Vec<usize> },
    /// Elements of our own, little-endian f32.
    Owned { shape: Vec<usize>, bytes: Vec<u8> },
}

impl<'a> Rearranged<'a> {
    /// The source as it is.
    pub fn new(source: &'a dyn WeightSource) -> Self {
        Rearranged { source, made: BTreeMap::new() }
    }

    /// `name` becomes tensor `of` under the shape `shape`, which has as many elements.
    ///
    /// # Errors
    /// `of` is missing or has another number of elements.
    pub fn reshape(&mut self, name: &str, of: &str, shape: &[usize]) -> Result<(), PlanError> {
        let found = self.shape(of)?;
        if product(&found) != product(shape) {
            return Err(wrong(of, format!("has shape {found:?}, expected that of {shape:?}")));
        }
        self.view(name, of, 0, shape.to_vec());
        Ok(())
    }

    /// `name` becomes tensor `of`.
    ///
    /// # Errors
    /// `of` is missing.
    pub fn rename(&mut self, name: &str, of: &str) -> Result<(), PlanError> {
        let shape = self.shape(of)?;
        self.view(name, of, 0, shape);
        Ok(())
    }

    /// Cuts tensor `of` along its first axis into as many equal parts as there are `names`.
    ///
    /// # Errors
    /// `of` is missing, or its first axis does not divide.
    pub fn split(&mut self, names: &[&str], of: &str) -> Result<(), PlanError> {
        let mut shape = self.shape(of)?;
        let parts = names.len().max(1);
        match shape.first_mut() {
            Some(rows) if *rows % parts == 0 => *rows /= parts,
            _ => return Err(wrong(of, format!("has shape {shape:?}, expected {parts} parts"))),
        }
        let each = product(&shape);
        for (i, name) in names.iter().enumerate() {
            self.view(name, of, i * each, shape.clone());
        }
        Ok(())
    }

    /// `name` becomes the first `rows` of the first axis of tensor `of`.
    ///
    /// # Errors
    /// `of` is missing or has fewer rows.
    pub fn rows(&mut self, name: &str, of: &str, rows: usize) -> Result<(), PlanError> {
        let mut shape = self.shape(of)?;
        match shape.first_mut() {
            Some(found) if *found >= rows => *found = rows,
            _ => return Err(wrong(of, format!("has shape {shape:?}, expected {rows} rows"))),
        }
        self.view(name, of, 0, shape);
        Ok(())
    }

    /// `name` becomes a tensor of these elements.
    ///
    /// # Errors
    /// The shape does not hold exactly these elements.
    pub fn own(&mut self, name: &str, shape: &[usize], elements: &[f32]) -> Result<(), PlanError> {
        if product(shape) != elements.len() {
            return Err(wrong(name, format!("{} elements for shape {shape:?}", elements.len())));
        }
        let bytes = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.made.insert(name.to_owned(), Made::Owned { shape: shape.to_vec(), bytes });
        Ok(())
    }

    /// The elements of a tensor of the source as f32, if it has this shape.
    ///
    /// # Errors
    /// `of` is missing, or has another shape.
    pub fn elements(&self, of: &str, shape: &[usize]) -> Result<Vec<f32>, PlanError> {
        let view = self.source.weight(of).ok_or_else(|| wrong(of, "is missing".to_owned()))?;
        let elements = view.to_f32();
        if view.shape != shape || elements.len() != product(shape) {
            return Err(wrong(of, format!("has shape {:?}, expected {shape:?}", view.shape)));
        }
        Ok(elements)
    }

    /// Whether the source holds a tensor of this name.
    pub fn holds(&self, of: &str) -> bool {
        self.source.weight(of).is_some()
    }

    fn shape(&self, of: &str) -> Result<Vec<usize>, PlanError> {
        let view = self.source.weight(of).ok_or_else(|| wrong(of, "is missing".to_owned()))?;
        Ok(view.shape.to_vec())
    }

    fn view(&mut self, name: &str, of: &str, first: usize, shape: Vec<usize>) {
        self.made.insert(name.to_owned(), Made::View { of: of.to_owned(), first, shape });
    }
}

impl WeightSource for Rearranged<'_> {
    fn weight(&self, name: &str) -> Option<WeightView<'_>> {
        match self.made.get(name) {
            None => self.source.weight(name),
            Some(Made::Owned { shape, bytes }) => {
                Some(WeightView { dtype: WeightType::F32, shape, bytes })
            }
            Some(Made::View { of, first, shape }) => {
                let view = self.source.weight(of)?;
                let size = match view.dtype {
                    WeightType::F64 => 8,
                    WeightType::F32 => 4,
                    WeightType::F16 | WeightType::Bf16 => 2,
                };
                let (start, length) = (first.checked_mul(size)?, product(shape).checked_mul(size)?);
                let bytes = view.bytes.get(start..start.checked_add(length)?)?;
                Some(WeightView { dtype: view.dtype, shape, bytes })
            }
        }
    }
}

/// Saturating, because shapes come from files; a saturated product fits no tensor.
fn product(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product, &n| product.saturating_mul(n))
}

fn wrong(name: &str, message: String) -> PlanError {
    PlanError::new(format!("tensor `{name}`"), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(Vec<u8>);

    impl WeightSource for One {
        fn weight(&self, name: &str) -> Option<WeightView<'_>> {
            let shape = &[4, 1];
            (name == "x").then_some(WeightView { dtype: WeightType::F32, shape, bytes: &self.0 })
        }
    }

    #[test]
    fn cuts_renames_and_reshapes_without_copying() {
        let one = One([1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect());
        let mut weights = Rearranged::new(&one);
        weights.split(&["a", "b"], "x").unwrap();
        weights.reshape("square", "x", &[2, 2]).unwrap();
        weights.rename("y", "x").unwrap();
        weights.rows("top", "x", 3).unwrap();
        weights.own("z", &[1], &[7.0]).unwrap();
        let read = |name: &str| weights.weight(name).map(|v| (v.shape.to_vec(), v.to_f32()));
        assert_eq!(read("a"), Some((vec![2, 1], vec![1.0, 2.0])));
        assert_eq!(read("b"), Some((vec![2, 1], vec![3.0, 4.0])));
        assert_eq!(read("square"), Some((vec![2, 2], vec![1.0, 2.0, 3.0, 4.0])));
        assert_eq!(read("y"), read("x"));
        assert_eq!(read("top"), Some((vec![3, 1], vec![1.0, 2.0, 3.0])));
        assert_eq!(read("z"), Some((vec![1], vec![7.0])));
        assert_eq!(read("w"), None);
    }

    #[test]
    fn says_what_does_not_fit() {
        let one = One(vec![0; 16]);
        let mut weights = Rearranged::new(&one);
        let error = weights.split(&["a", "b", "c"], "x").unwrap_err().to_string();
        assert_eq!(error, "tensor `x`: has shape [4, 1], expected 3 parts");
        let error = weights.reshape("a", "x", &[usize::MAX, 2]).unwrap_err().to_string();
        assert!(error.contains("[4, 1]"), "{error}");
        assert!(weights.rename("a", "y").unwrap_err().to_string().contains("`y`: is missing"));
    }
}
