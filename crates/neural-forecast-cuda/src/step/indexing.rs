//! From the number of a work item to the place of its elements. Mirrors `ptx/indexing.cuh`.
//!
//! Kernels number their items in 32 bits, because 64-bit divisions are slow; what has more items
//! becomes several launches here.

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

/// Most axes of unequal strides, after neighbours that lie as one have been joined.
const AXES_MAX: usize = 8;

/// Most items of a launch.
pub(super) const ITEMS_MAX: usize = 1 << 30;

/// Bytes of an element of a value.
pub(super) const BYTES: u64 = 4;

/// Division of numbers below 2³¹ by multiplication and shift.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Divisor {
    divisor: u32,
    multiplier: u32,
    shift: u32,
    zero: u32,
}

impl Divisor {
    /// By a number from 1 to 2³¹; larger ones divide no item and are taken for 2³¹.
    pub(super) fn new(divisor: usize) -> Divisor {
        let divisor = divisor.clamp(1, 1 << 31) as u32;
        let shift = divisor.next_power_of_two().trailing_zeros();
        // ⌊2³² (2^shift − divisor) / divisor⌋ + 1 (Granlund and Montgomery, 1994).
        let excess = (1u64 << shift) - u64::from(divisor);
        let multiplier = ((excess << 32) / u64::from(divisor) + 1) as u32;
        Divisor { divisor, multiplier, shift, zero: 0 }
    }
}

/// An axis of something copied: its length, and the elements from one position to the next in the
/// source and in the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) size: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Axes as kernels read them, the innermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Axes {
    sizes: [Divisor; AXES_MAX],
    strides: [u64; AXES_MAX],
    count: u32,
    zero: u32,
}

impl Axes {
    /// Of axes, the outermost first, by one of their strides.
    pub(super) fn new(axes: &[Axis], stride: impl Fn(&Axis) -> usize) -> Result<Axes, DeviceError> {
        if axes.len() > AXES_MAX {
            let message = format!("a copy along {} axes, at most {AXES_MAX}", axes.len());
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        let mut found = Axes { count: axes.len().max(1) as u32, ..Axes::default() };
        found.sizes[0] = Divisor::new(1);
        for (i, axis) in axes.iter().rev().enumerate() {
            found.sizes[i] = Divisor::new(axis.size);
            found.strides[i] = stride(axis) as u64;
        }
        Ok(found)
    }
}

/// Elements from one position of each axis to the next in a dense value.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Without axes of one position, and with neighbours joined that lie as one axis on both sides.
pub(super) fn joined(axes: impl IntoIterator<Item = Axis>) -> Vec<Axis> {
    let mut found: Vec<Axis> = Vec::new();
    for axis in axes {
        match found.last_mut() {
            _ if axis.size == 1 => {}
            Some(outer)
                if outer.from == axis.from * axis.size && outer.to == axis.to * axis.size =>
            {
                *outer = Axis { size: outer.size * axis.size, ..axis };
            }
            _ => found.push(axis),
        }
    }
    found
}

/// Takes a part's axes and where it starts in the source and in the result.
type PartVisitor<'a> = &'a mut dyn FnMut(&[Axis], usize, usize) -> Result<(), DeviceError>;

/// Cuts the outermost axes until every part has at most [`ITEMS_MAX`] items, and visits each
/// part.
pub(super) fn parts(axes: &[Axis], part: PartVisitor<'_>) -> Result<(), DeviceError> {
    let Some((outer, inner)) = axes.split_first() else { return part(axes, 0, 0) };
    let inner_items: usize = inner.iter().map(|axis| axis.size).product();
    if outer.size * inner_items <= ITEMS_MAX {
        return part(axes, 0, 0);
    }
    if inner_items <= ITEMS_MAX {
        let most = ITEMS_MAX / inner_items;
        for first in (0..outer.size).step_by(most) {
            let size = most.min(outer.size - first);
            let cut = [&[Axis { size, ..*outer }], inner].concat();
            part(&cut, first * outer.from, first * outer.to)?;
        }
        return Ok(());
    }
    for i in 0..outer.size {
        let (from, to) = (i * outer.from, i * outer.to);
        parts(inner, &mut |axes, f, t| part(axes, from + f, to + t))?;
    }
    Ok(())
}

/// Refuses more than a launch can number.
pub(super) fn check(what: &str, found: usize) -> Result<(), DeviceError> {
    if found <= ITEMS_MAX {
        return Ok(());
    }
    let message = format!("{found} {what}, at most {ITEMS_MAX}");
    Err(DeviceError::new(DeviceErrorKind::Unsupported, message))
}

/// Blocks for so many items of `each` a thread.
pub(super) fn blocks(items: usize, threads: usize, each: usize) -> [u32; 3] {
    [items.div_ceil(threads * each) as u32, 1, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_divide() {
        for divisor in [1, 2, 3, 5, 7, 10, 64, 641, 1023, 65_537, (1 << 30) - 1, 1 << 30, 1 << 31] {
            let d = Divisor::new(divisor);
            let near = |n: usize| [n.saturating_sub(1), n, n + 1];
            let numbers = [0, divisor, 3 * divisor, (1 << 31) / divisor * divisor, 1 << 30];
            for n in numbers.into_iter().flat_map(near).filter(|&n| n < 1 << 31) {
                let high = ((n as u64 * u64::from(d.multiplier)) >> 32) as u32;
                let sum = high.checked_add(n as u32).expect("the sum fits into 32 bits");
                assert_eq!((sum >> d.shift) as usize, n / divisor, "{n} / {divisor}");
            }
        }
    }

    #[test]
    fn neighbours_that_lie_as_one_are_joined() {
        let axis = |size, from, to| Axis { size, from, to };
        let dense = [axis(2, 60, 60), axis(1, 60, 60), axis(3, 20, 20), axis(20, 1, 1)];
        assert_eq!(joined(dense), [axis(120, 1, 1)]);
        let turned = [axis(2, 12, 12), axis(4, 1, 3), axis(3, 4, 1)];
        assert_eq!(joined(turned), turned);
        assert_eq!(joined([axis(1, 7, 9)]), []);
    }

    #[test]
    fn parts_cover_everything_once() {
        let axis = |size, from, to| Axis { size, from, to };
        let long = ITEMS_MAX + 5;
        for axes in [
            vec![axis(long, 1, 1)],
            vec![axis(3, 2 * long, long), axis(long, 1, 1)],
            vec![axis(7, 0, ITEMS_MAX / 2), axis(ITEMS_MAX / 2, 1, 1)],
        ] {
            let (mut next, mut items) = (0, 0);
            parts(&axes, &mut |part, _, to| {
                let part_items: usize = part.iter().map(|axis| axis.size).product();
                assert!(part_items <= ITEMS_MAX);
                assert_eq!(to, next);
                (next, items) = (to + part_items, items + part_items);
                Ok(())
            })
            .unwrap();
            assert_eq!(items, axes.iter().map(|axis| axis.size).product::<usize>());
        }
    }
}
