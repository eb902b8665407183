//! The reference's tensor: a shape and its elements in `f64`, row-major.
//!
//! Not a tensor library: it indexes, and that is all the reference implementations need.

/// A dense row-major tensor of `f64`. Integer values hold whole numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Axis lengths, the slowest axis first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements, as many as the product of the shape.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Panics
    /// If the shape does not hold exactly these elements.
    pub fn new(shape: impl Into<Vec<usize>>, data: impl Into<Vec<f64>>) -> Self {
        let (shape, data) = (shape.into(), data.into());
        let elements: usize = shape.iter().product();
        assert_eq!(elements, data.len(), "a tensor of shape {shape:?} has {elements} elements");
        Tensor { shape, data }
    }

    /// A tensor of f32 elements, widened.
    ///
    /// # Panics
    /// If the shape does not hold exactly these elements.
    pub fn from_f32(shape: impl Into<Vec<usize>>, data: &[f32]) -> Self {
        Tensor::new(shape, data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
    }

    /// A tensor of i32 elements, widened.
    ///
    /// # Panics
    /// If the shape does not hold exactly these elements.
    pub fn from_i32(shape: impl Into<Vec<usize>>, data: &[i32]) -> Self {
        Tensor::new(shape, data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
    }

    /// Zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let elements = shape.iter().product();
        Tensor { shape, data: vec![0.0; elements] }
    }

    /// The tensor whose element at each index is `f(index)`.
    pub fn from_fn(shape: impl Into<Vec<usize>>, mut f: impl FnMut(&[usize]) -> f64) -> Self {
        let mut tensor = Tensor::zeros(shape);
        let mut index = vec![0; tensor.shape.len()];
        for element in &mut tensor.data {
            *element = f(&index);
            for (i, n) in index.iter_mut().zip(&tensor.shape).rev() {
                *i += 1;
                if *i < *n {
                    break;
                }
                *i = 0;
            }
        }
        tensor
    }

    /// The element at an index of all axes.
    ///
    /// # Panics
    /// If the index is not inside the shape.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.position(index)]
    }

    /// The element at an index of all axes, to write.
    ///
    /// # Panics
    /// If the index is not inside the shape.
    pub fn at_mut(&mut self, index: &[usize]) -> &mut f64 {
        let position = self.position(index);
        &mut self.data[position]
    }

    /// Length of the last axis; 1 for a scalar.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The vectors along the last axis.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        // Chunks of nothing do not exist; a tensor of width 0 has no element anyway.
        self.data.chunks_exact(self.width().max(1))
    }

    /// Elements rounded to f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&x| x as f32).collect()
    }

    fn position(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len(), "an index into shape {:?}", self.shape);
        index.iter().zip(&self.shape).fold(0, |position, (&i, &n)| {
            assert!(i < n, "index {index:?} is outside of shape {:?}", self.shape);
            position * n + i
        })
    }
}

/// `Σ aᵢ·bᵢ` over the shorter of two vectors.
///
/// Eight sums side by side: one alone waits several cycles for each addition, and an oracle over a
/// thousand windows of a large network takes hours as it is.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    const SUMS: usize = 8;
    let n = a.len().min(b.len());
    let (a, b) = (a[..n].chunks_exact(SUMS), b[..n].chunks_exact(SUMS));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; SUMS];
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_product_has_every_term() {
        for n in [0, 1, 7, 8, 9, 16, 23] {
            // Powers of two tell from the sum which terms are in it.
            let a: Vec<f64> = (0..n).map(|i| f64::from(1 << i)).collect();
            let terms = f64::from((1 << n) - 1);
            assert_eq!(dot(&a, &vec![3.0; n as usize]), 3.0 * terms, "{n} terms");
            assert_eq!(dot(&vec![1.0; 40], &a), terms, "{n} terms of a longer vector");
        }
    }

    #[test]
    fn indices_run_with_the_last_axis_fastest() {
        let tensor = Tensor::from_fn([2, 3], |i| (10 * i[0] + i[1]) as f64);
        assert_eq!(tensor.data, [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
        assert_eq!(tensor.at(&[1, 2]), 12.0);
        assert_eq!(tensor.rows().nth(1), Some(&[10.0, 11.0, 12.0][..]));
        assert_eq!(Tensor::from_fn([2, 0], |_| 1.0).rows().count(), 0);
        assert_eq!(Tensor::from_fn([], |_| 7.0).at(&[]), 7.0);
    }
}
