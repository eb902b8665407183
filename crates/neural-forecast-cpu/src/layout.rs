//! Data movement: copies between strided views. Slices, joins, transpositions, repetitions and
//! patches are all one of these.
//!
//! No arithmetic; elements are four bytes of any type.

use crate::team::Worker;

/// Most axes of a value that can be moved.
pub const AXES_MAX: usize = 8;

/// A copy of a box of elements from one strided view to another.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// Axes in use.
    pub rank: usize,
    /// Elements along each axis.
    pub sizes: [usize; AXES_MAX],
    /// Elements between neighbours in the source; 0 repeats.
    pub from_strides: [usize; AXES_MAX],
    /// Elements between neighbours in the destination.
    pub to_strides: [usize; AXES_MAX],
}

/// Row-major strides of a shape.
pub fn strides(shape: &[usize]) -> [usize; AXES_MAX] {
    let mut strides = [0; AXES_MAX];
    let mut step = 1;
    for (axis, &n) in shape.iter().enumerate().rev() {
        strides[axis] = step;
        step *= n;
    }
    strides
}

impl Copy {
    /// The whole of a dense destination of `shape`, read with these strides.
    pub fn dense(shape: &[usize], from_strides: [usize; AXES_MAX]) -> Copy {
        let mut sizes = [1; AXES_MAX];
        sizes[..shape.len()].copy_from_slice(shape);
        Copy { rank: shape.len(), sizes, from_strides, to_strides: strides(shape) }
    }

    /// Copies this worker's share of the outer positions.
    ///
    /// # Safety
    /// Both views are inside their memory; nobody else writes the destination or the source.
    pub unsafe fn run(&self, from: *const f32, to: *mut f32, worker: Worker<'_>) {
        let inner = self.rank.saturating_sub(1);
        let outer: usize = self.sizes[..inner].iter().product();
        let n = if self.rank == 0 { 1 } else { self.sizes[inner] };
        let (step_from, step_to) = match self.rank {
            0 => (1, 1),
            _ => (self.from_strides[inner], self.to_strides[inner]),
        };
        for position in worker.share(outer) {
            let (mut rest, mut a, mut b) = (position, 0, 0);
            for axis in (0..inner).rev() {
                let i = rest % self.sizes[axis];
                rest /= self.sizes[axis];
                a += i * self.from_strides[axis];
                b += i * self.to_strides[axis];
            }
            // SAFETY: the caller's.
            unsafe {
                let (from, to) = (from.add(a), to.add(b));
                if step_from == 1 && step_to == 1 {
                    std::ptr::copy_nonoverlapping(from, to, n);
                } else {
                    for i in 0..n {
                        *to.add(i * step_to) = *from.add(i * step_from);
                    }
                }
            }
        }
    }
}
