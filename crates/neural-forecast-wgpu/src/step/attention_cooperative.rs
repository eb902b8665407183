//! How `attention_cooperative` shares the queries and keys of a head: by their number and the
//! head's width, never by the batch.

use super::build::word;

/// Rows, columns and depth of a matrix.
const SIDE: usize = 16;

/// Most matrices along a head, whose sums a subgroup keeps in registers.
const DEPTH_MAX: usize = 4;

/// A workgroup's share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Subgroups, each with sixteen queries.
    groups: usize,
    /// Matrices along the keys that are in workgroup memory at once, and along a head.
    keys: usize,
    depth: usize,
    /// Whether those are all keys.
    once: bool,
}

impl Tile {
    /// Where a head is a whole number of matrices, and not too many.
    pub(super) fn of(head: usize, queries: usize, keys: usize) -> Option<Tile> {
        let depth = head / SIDE;
        let takes = head.is_multiple_of(SIDE) && (1..=DEPTH_MAX).contains(&depth);
        // Many queries share the keys that a workgroup brings in.
        let (groups, tiles) = if queries > 64 { (8, 2) } else { (4, 4) };
        takes.then_some(Tile { groups, keys: tiles, depth, once: keys <= SIDE * tiles })
    }

    /// Queries of a workgroup.
    pub(super) fn queries(self) -> usize {
        SIDE * self.groups
    }

    /// Invocations of a workgroup.
    pub(super) fn invocations(self, lanes: u32) -> usize {
        self.groups * lanes as usize
    }

    /// Bytes of workgroup memory: keys and values, scores and shares, which keys are seen.
    pub(super) fn bytes(self) -> usize {
        let tile = 2 * SIDE * self.keys * (4 * self.depth + 2) * 8;
        let row = 4 * self.keys + 2;
        tile + self.queries() * row * (16 + 8) + 4 * SIDE * self.keys
    }

    /// Constants of the kernel's text, for subgroups of so many lanes.
    pub(super) fn constants(self, lanes: u32) -> Vec<(&'static str, u32)> {
        let Tile { groups, keys, depth, once } = self;
        let fours = 4 * SIDE * keys * depth;
        let share = lanes as usize / SIDE;
        vec![
            ("GROUPS", word(groups)),
            ("LANES", lanes),
            ("KEY_TILES", word(keys)),
            ("DEPTH", word(depth)),
            ("LOADS", word(fours.div_ceil(self.invocations(lanes)))),
            ("FOURS", word(4 * keys / share)),
            ("ONCE", u32::from(once)),
        ]
    }
}

/// Constants of the kernel's text in every kind of variant.
#[cfg(test)]
pub(crate) fn attention_variants() -> Vec<crate::kernel::Constants> {
    let sizes = [(16, 64, 64), (64, 512, 512), (48, 17, 150), (32, 65, 7)];
    let tiles = sizes.into_iter().filter_map(|(head, queries, keys)| Tile::of(head, queries, keys));
    tiles
        .flat_map(|tile| [32, 64].map(|lanes| tile.constants(lanes)))
        .flat_map(|constants| {
            [0, 1].map(|is| {
                let ends = [("CAUSAL", is), ("MASK", is)];
                constants.iter().copied().chain(ends).collect()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_into_the_memory_of_a_workgroup() {
        for (head, queries) in [(16, 64), (64, 64), (16, 65), (64, 512)] {
            let tile = Tile::of(head, queries, 1000).expect("heads are matrices");
            assert!(tile.bytes() <= 48 << 10, "{tile:?} takes {} bytes", tile.bytes());
        }
        assert!(Tile::of(8, 64, 64).is_none() && Tile::of(80, 64, 64).is_none());
    }
}
