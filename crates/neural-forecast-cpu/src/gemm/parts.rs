//! Which panels a tile of few rows takes at once: groups of neighbours, then those that are left
//! over, then a narrow last panel by itself.

use super::Packed;
use std::ops::Range;

/// A range of panels in the order in which tiles take them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    panels: Range<usize>,
    /// Panels of a group, and groups.
    at_once: usize,
    groups: usize,
    /// Panels of what follows, and how many such parts.
    few: usize,
    rests: usize,
    narrow: bool,
}

impl Parts {
    /// Groups of `at_once` panels; of what is left over, `few` says how many go together.
    #[inline(always)]
    pub(super) fn new(
        w: &Packed,
        panels: Range<usize>,
        at_once: usize,
        few: impl Fn(usize) -> usize,
    ) -> Parts {
        let narrow = panels.contains(&w.panels.wrapping_sub(1)) && w.last_vectors < w.vectors;
        let wide = panels.len() - usize::from(narrow);
        let (groups, left) = (wide / at_once, wide % at_once);
        let few = few(left);
        Parts { panels, at_once, groups, few, rests: left / few, narrow }
    }

    /// Number of parts.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.groups + self.rests + usize::from(self.narrow)
    }

    /// The panels of a part.
    #[inline(always)]
    pub(super) fn part(&self, i: usize) -> Range<usize> {
        if i < self.groups {
            let first = self.panels.start + i * self.at_once;
            return first..first + self.at_once;
        }
        let i = i - self.groups;
        if i < self.rests {
            let first = self.panels.start + self.groups * self.at_once + i * self.few;
            return first..first + self.few;
        }
        self.panels.end - 1..self.panels.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Precision;
    use crate::isa::Isa;

    #[test]
    fn parts_cover_the_panels_and_leave_a_narrow_one_alone() {
        let Some(isa) = Isa::available().pop() else { return };
        let lanes = isa.lanes();
        for units in [lanes, 7 * lanes, 7 * lanes + 1] {
            let weights = vec![0.0; 4 * units];
            let w = Packed::gates(isa, Precision::F32, &weights, (4 * units, 1), 4, None);
            assert_eq!(w.last_vectors < w.vectors, units % lanes == 1, "{units} units");
            for start in 0..=w.panels {
                for end in start..=w.panels {
                    for at_once in 1..=4 {
                        for together in [false, true] {
                            let few = |left: usize| if together { left.max(1) } else { 1 };
                            let parts = Parts::new(&w, start..end, at_once, few);
                            let mut next = start;
                            for i in 0..parts.len() {
                                let part = parts.part(i);
                                assert!(part.start == next && !part.is_empty(), "{parts:?}");
                                let vectors = w.vectors_of(part.end - 1);
                                assert!(part.len() == 1 || vectors == w.vectors, "{parts:?}");
                                next = part.end;
                            }
                            assert_eq!(next, end, "{parts:?}");
                        }
                    }
                }
            }
        }
    }
}
