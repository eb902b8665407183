//! Sizes of this machine's data caches, as the processor states them.
//!
//! For cost models that choose between ways of doing the same, and for ceilings; no result depends
//! on them.

use std::sync::OnceLock;

/// Bytes of each level that one core reads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// First level, data.
    pub l1: usize,
    /// Second level.
    pub l2: usize,
    /// Third level, all of it, though others use it too. 0 where there is none.
    pub l3: usize,
}

/// What is assumed where the processor does not say: the least of the x86-64 servers since 2017.
const UNKNOWN: Caches = Caches { l1: 32 << 10, l2: 1 << 20, l3: 16 << 20 };

impl Caches {
    /// This machine's, or a guess where its processor does not state them.
    pub fn of_this_machine() -> Caches {
        Caches::stated().unwrap_or(UNKNOWN)
    }

    /// This machine's, where its processor states them.
    pub fn stated() -> Option<Caches> {
        static FOUND: OnceLock<Option<Caches>> = OnceLock::new();
        *FOUND.get_or_init(detect)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Option<Caches> {
    None
}

/// Leaf 4 (Intel) and leaf 0x8000001D (AMD) list the caches in one format.
#[cfg(target_arch = "x86_64")]
fn detect() -> Option<Caches> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let (basic, extended) = (__cpuid(0).eax, __cpuid(0x8000_0000).eax);
    let leaves = [(0x8000_001d, extended), (4, basic)];
    leaves.into_iter().filter(|&(leaf, last)| leaf <= last).find_map(|(leaf, _)| {
        let descriptions = (0..16).map(|i| {
            let found = __cpuid_count(leaf, i);
            [found.eax, found.ebx, found.ecx]
        });
        read(descriptions)
    })
}

/// Reads cache descriptions `[eax, ebx, ecx]` up to the empty one; `None` without L1 and L2.
#[cfg(any(target_arch = "x86_64", test))]
fn read(descriptions: impl Iterator<Item = [u32; 3]>) -> Option<Caches> {
    let mut caches = Caches { l1: 0, l2: 0, l3: 0 };
    for [eax, ebx, ecx] in descriptions.take_while(|[eax, ..]| eax & 31 != 0) {
        let instructions = eax & 31 == 2;
        let field = |shift: u32, bits: u32| ((ebx >> shift) & ((1 << bits) - 1)) as usize + 1;
        let bytes = field(0, 12) * field(12, 10) * field(22, 10) * (ecx as usize + 1);
        match (eax >> 5) & 7 {
            1 if !instructions => caches.l1 = bytes,
            2 if !instructions => caches.l2 = bytes,
            3 if !instructions => caches.l3 = bytes,
            _ => {}
        }
    }
    (caches.l1 > 0 && caches.l2 > 0).then_some(caches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read_as_the_manuals_say() {
        let describe = |level: u32, kind: u32, ways: u32, sets: u32| {
            [level << 5 | kind, (ways - 1) << 22 | 63, sets - 1]
        };
        let zen = [
            describe(1, 1, 8, 64),
            describe(1, 2, 8, 64),
            describe(2, 3, 8, 2048),
            describe(3, 3, 16, 32768),
            [0; 3],
            describe(1, 1, 1, 1),
        ];
        let expected = Caches { l1: 32 << 10, l2: 1 << 20, l3: 32 << 20 };
        assert_eq!(read(zen.into_iter()), Some(expected));
        assert_eq!(read(zen.into_iter().skip(4)), None, "no caches");
        let two = Caches { l3: 0, ..expected };
        assert_eq!(read(zen.into_iter().take(3)), Some(two));
    }

    #[test]
    fn this_machine_has_caches_that_grow() {
        let caches = Caches::of_this_machine();
        assert!(caches.l1 >= 8 << 10 && caches.l2 > caches.l1, "{caches:?}");
        assert!(caches.l3 == 0 || caches.l3 > caches.l2, "{caches:?}");
    }
}
