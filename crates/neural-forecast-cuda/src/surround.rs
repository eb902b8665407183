//! The launches around a program's steps: inputs and header in, states committed, outputs out.
//!
//! Mirrors `ptx/program.cu`. Decides grids; knows no op.

use crate::launch::{Arguments, Launch};

/// Regions and states of one launch.
const REGIONS: usize = 16;
const STATES: usize = 16;
const THREADS: u32 = 1024;
/// Most blocks of a copy; eight keep the bus busy, and more start as fast (ladder in the source).
const BLOCKS_MAX: u64 = 64;
/// 16-byte chunks of outputs, and of states, up to which one block finishes a run: several must
/// wait for one another, which takes a microsecond (ladder in the source).
const OUTPUTS_ALONE: u64 = (256 << 10) / 16;
const STATES_ALONE: u64 = (64 << 10) / 16;

/// Bytes that are copied from one place to another, both 256-byte aligned and padded to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Region {
    from: u64,
    to: u64,
    /// Chunks of 16 bytes; in a launch, those of the regions before it too.
    chunks: u64,
}

impl Region {
    pub(crate) fn new(from: u64, to: u64, bytes: usize) -> Region {
        Region { from, to, chunks: bytes.div_ceil(16) as u64 }
    }
}

/// A state to commit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NewState {
    /// `[batch, elements]`.
    pub(crate) rows: u64,
    /// `[slots, elements]`.
    pub(crate) store: u64,
    pub(crate) elements: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct BeginArguments {
    region: [Region; REGIONS],
    regions: u32,
    reserved: u32,
}

// SAFETY: `#[repr(C)]`, fields of 8 bytes and then two of 4: no padding; mirrors `BeginArguments`
// in `ptx/program.cu`.
unsafe impl Arguments for BeginArguments {}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FinishArguments {
    header: u64,
    flag: u64,
    counter: u64,
    state: [NewState; STATES],
    region: [Region; REGIONS],
    states: u32,
    regions: u32,
}

// SAFETY: `#[repr(C)]`, fields of 8 bytes and then two of 4: no padding; mirrors
// `FinishArguments` in `ptx/program.cu`.
unsafe impl Arguments for FinishArguments {}

/// Blocks for so many chunks.
fn grid(chunks: u64) -> [u32; 3] {
    [chunks.div_ceil(u64::from(THREADS)).clamp(1, BLOCKS_MAX) as u32, 1, 1]
}

/// The regions as one range of chunks, and how many they are.
fn joined(regions: &[Region]) -> ([Region; REGIONS], u64) {
    let mut joined = table(regions);
    let mut end = 0;
    for region in &mut joined[..regions.len()] {
        end += region.chunks;
        region.chunks = end;
    }
    (joined, end)
}

/// A table of fixed size with the first entries set.
fn table<T: Copy + Default, const N: usize>(entries: &[T]) -> [T; N] {
    let mut table = [T::default(); N];
    table[..entries.len()].copy_from_slice(entries);
    table
}

/// Launches that copy regions: the header first, then inputs.
pub(crate) fn begin(regions: &[Region]) -> Vec<Launch> {
    let launch = |regions: &[Region]| {
        let (region, chunks) = joined(regions);
        let arguments = BeginArguments { region, regions: regions.len() as u32, reserved: 0 };
        let (grid, block) = (grid(chunks), [THREADS, 1, 1]);
        Launch::new("program", "program_begin", "program-begin", grid, block, arguments)
    };
    regions.chunks(REGIONS).map(launch).collect()
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct StageArguments {
    from: u64,
    to: u64,
    flags: u64,
    chunk_bytes: u64,
    bytes: u64,
}

// SAFETY: `#[repr(C)]`, fields of 8 bytes: no padding; mirrors `StageArguments` in
// `ptx/program.cu`.
unsafe impl Arguments for StageArguments {}

/// Chunks of an input that is copied while it is written: the kernel has a block for each, all of
/// which any GPU runs at once.
pub(crate) const STAGE_CHUNKS: usize = 24;
/// Bytes from one chunk's flag to the next one's.
pub(crate) const STAGE_FLAG_BYTES: usize = 256;

/// A launch that copies bytes in chunks as the host raises their flags; both places 256-byte
/// aligned and padded to it.
pub(crate) fn stage(from: u64, to: u64, bytes: usize, chunk_bytes: usize, flags: u64) -> Launch {
    let chunks = bytes.div_ceil(chunk_bytes);
    assert!(chunks <= STAGE_CHUNKS, "{chunks} chunks of {chunk_bytes} bytes");
    let (chunk_bytes, bytes) = (chunk_bytes as u64, bytes as u64);
    let arguments = StageArguments { from, to, flags, chunk_bytes, bytes };
    let (grid, block) = ([chunks as u32, 1, 1], [THREADS, 1, 1]);
    Launch::new("program", "program_stage", "program-stage", grid, block, arguments)
}

/// Where the end of a run is announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announcement {
    /// Host memory that becomes the run's sequence number.
    pub(crate) flag: u64,
    /// Four bytes on the device that are zero.
    pub(crate) counter: u64,
}

/// Launches that commit new states and copy regions; the last announces the end.
pub(crate) fn finish(
    header: u64,
    states: &[NewState],
    regions: &[Region],
    batch: usize,
    announcement: Option<Announcement>,
) -> Vec<Launch> {
    let count = states.len().div_ceil(STATES).max(regions.len().div_ceil(REGIONS));
    let count = count.max(usize::from(announcement.is_some()));
    let part = |i: usize| {
        let states =
            &states[(i * STATES).min(states.len())..(i * STATES + STATES).min(states.len())];
        let first = (i * REGIONS).min(regions.len());
        let regions = &regions[first..(first + REGIONS).min(regions.len())];
        let last = announcement.filter(|_| i + 1 == count);
        let (region, chunks) = joined(regions);
        let arguments = FinishArguments {
            header,
            flag: last.map_or(0, |announcement| announcement.flag),
            counter: last.map_or(0, |announcement| announcement.counter),
            state: table(states),
            region,
            states: states.len() as u32,
            regions: regions.len() as u32,
        };
        let elements: u64 = states.iter().map(|state| state.elements).sum();
        let committed = elements * batch as u64 / 4;
        let alone = chunks <= OUTPUTS_ALONE && committed <= STATES_ALONE;
        let grid = if alone { [1, 1, 1] } else { grid(chunks.max(committed)) };
        let block = [THREADS, 1, 1];
        Launch::new("program", "program_finish", "program-finish", grid, block, arguments)
            .programmatic()
    };
    (0..count).map(part).collect()
}

/// A launch that does nothing, in clusters whose blocks have so much shared memory.
pub(crate) fn probe(blocks: u32, shared_bytes: u32) -> Launch {
    let (grid, block) = ([blocks, 1, 1], [128, 1, 1]);
    let arguments = BeginArguments::default();
    Launch::new("program", "program_probe", "program-probe", grid, block, arguments)
        .clusters(blocks)
        .shared(shared_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_regions_take_several_launches_and_the_last_announces() {
        let regions = vec![Region::new(256, 512, 100); 40];
        assert_eq!(begin(&regions).len(), 3);
        let announcement = Announcement { flag: 7, counter: 9 };
        let launches = finish(1, &[], &regions, 1, Some(announcement));
        let flags = launches.iter().map(|launch| launch.arguments()[8]);
        assert_eq!(flags.collect::<Vec<_>>(), [0, 0, 7]);
        assert_eq!(finish(1, &[], &[], 1, Some(announcement)).len(), 1);
        assert!(finish(1, &[], &[], 1, None).is_empty());
        assert_eq!(finish(1, &[NewState::default(); 17], &[], 1, None).len(), 2);
    }

    #[test]
    fn arguments_have_the_layout_of_the_kernels() {
        assert_eq!(size_of::<BeginArguments>(), 16 * 24 + 8);
        assert_eq!(size_of::<FinishArguments>(), 24 + 16 * 24 + 16 * 24 + 8);
        let launch = &begin(&[Region::new(0x1122, 0x3344, 17)])[0];
        assert_eq!(launch.arguments()[..2], [0x22, 0x11]);
        assert_eq!(launch.arguments()[8..10], [0x44, 0x33]);
        assert_eq!(launch.arguments()[16], 2, "chunks are rounded up");
        assert_eq!(launch.arguments()[16 * 24], 1, "one region");
    }
}
