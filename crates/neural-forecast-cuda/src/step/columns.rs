//! Kernels over the middle axis of `[rows, time, channels]`: tiles and threads. Mirrors
//! `ptx/columns.cuh`.
//!
//! The choice depends on the lengths of the two axes alone, and so do the bits of a row.

/// Most channels of a tile: `TILE_CHANNELS`.
const CHANNELS_MAX: usize = 32;

/// Fewest and most threads of a block: a warp, and `COLUMN_THREADS`.
const THREADS: std::ops::RangeInclusive<usize> = 32..=512;

/// Elements that a thread goes over before its block gets more threads. Chosen, not measured: a
/// thread keeps four loads in flight.
const ELEMENTS: usize = 4;

/// How a block's threads are spread over channels and times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Channels of a block.
    pub(super) tile: usize,
    /// Tiles of all channels.
    pub(super) tiles: usize,
    /// Threads of a channel.
    pub(super) slots: usize,
    /// Threads of a block, at least `tile · slots`.
    pub(super) threads: usize,
}

impl Tiles {
    pub(super) fn new(channels: usize, time: usize) -> Tiles {
        let tiles = channels.div_ceil(CHANNELS_MAX);
        let tile = channels.div_ceil(tiles.max(1)).max(1);
        let wanted = (tile * time).div_ceil(ELEMENTS).next_multiple_of(32);
        let threads = wanted.clamp(*THREADS.start(), *THREADS.end());
        Tiles { tile, tiles, slots: threads / tile, threads }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_threads() {
        for channels in 1..300 {
            for time in [0, 1, 7, 96, 512, 100_000] {
                let tiles = Tiles::new(channels, time);
                assert!(tiles.tile * tiles.tiles >= channels, "{tiles:?}");
                assert!(tiles.tile * (tiles.tiles - 1) < channels, "{tiles:?}");
                assert!(tiles.slots > 0 && tiles.tile * tiles.slots <= tiles.threads, "{tiles:?}");
                assert!(tiles.tile <= CHANNELS_MAX);
            }
        }
    }
}
