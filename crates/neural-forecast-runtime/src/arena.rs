//! The arena: where each value of a program lives, computed from the plan before anything is
//! allocated.
//!
//! Holds no memory itself. A backend allocates `ArenaPlan::bytes` once and addresses values as
//! offsets into it.

use std::ops::Range;

use crate::ops::Op;
use crate::plan::{Bucket, Entry, ValueId, elements};

/// Offsets in an arena are multiples of this many bytes: WebGPU's minimum storage buffer offset
/// alignment, and a multiple of every cache line.
pub const ALIGNMENT: usize = 256;

/// Bytes of memory with their owner's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// Who needs them.
    pub owner: String,
    /// How many.
    pub bytes: u64,
}

impl MemoryLine {
    /// A line.
    pub fn new(owner: impl Into<String>, bytes: u64) -> Self {
        MemoryLine { owner: owner.into(), bytes }
    }
}

/// A value's place: bytes of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte, a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// Length in bytes; 4 per element.
    pub bytes: usize,
}

/// Places of all values of an entry in a bucket.
#[derive(Clone, Debug)]
pub struct ArenaPlan {
    regions: Vec<Region>,
    bytes: usize,
    lines: Vec<MemoryLine>,
}

impl ArenaPlan {
    /// Lays out an entry's values: a value occupies its region from the step that writes it to the
    /// last step that reads it, and values whose lifetimes do not meet share bytes. A reshaped
    /// value has the region of its source. Inputs and outputs are never shared, because the host
    /// writes and reads them outside of the run.
    pub fn new(entry: &Entry, bucket: Bucket) -> ArenaPlan {
        ArenaPlan::with_stretches(entry, bucket, &[])
    }

    /// As [`ArenaPlan::new`] for a backend whose threads go through stretches of steps (ranges of
    /// their numbers) at their own pace: what is touched in a stretch is live in all of it.
    pub fn with_stretches(entry: &Entry, bucket: Bucket, stretches: &[Range<usize>]) -> ArenaPlan {
        let owners = owners(entry);
        let mut lives = lifetimes(entry, &owners);
        for life in lives.iter_mut().filter(|life| life.start < life.end) {
            // Step `i` is number `i + 1` of a lifetime.
            for Range { start, end } in stretches {
                if (start + 1..end + 1).contains(&life.start) {
                    life.start = start + 1;
                }
                if (start + 1..end + 1).contains(&(life.end - 1)) {
                    life.end = end + 1;
                }
            }
        }
        let mut regions = vec![Region { offset: 0, bytes: 0 }; entry.values.len()];
        let mut placed: Vec<(Region, Range<usize>)> = Vec::new();
        let mut order: Vec<usize> =
            (0..entry.values.len()).filter(|&v| owners[v] == v && !lives[v].is_empty()).collect();
        let size = |v: usize| elements(&entry.values[v].shape, bucket) * 4;
        // Largest first: the classic greedy order for offset assignment.
        order.sort_by_key(|&v| (std::cmp::Reverse(size(v)), v));
        for v in order {
            let bytes = size(v);
            let offset = first_fit(&placed, &lives[v], bytes);
            regions[v] = Region { offset, bytes };
            if bytes > 0 {
                placed.push((regions[v], lives[v].clone()));
            }
        }
        for v in 0..regions.len() {
            regions[v] = regions[owners[v]];
        }
        let bytes = placed.iter().map(|(r, _)| r.offset + r.bytes).max().unwrap_or(0);
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let lines = lines(entry, &owners, &regions, bytes);
        ArenaPlan { regions, bytes, lines }
    }

    /// A value's place.
    pub fn region(&self, value: ValueId) -> Region {
        self.regions[value.index()]
    }

    /// Bytes to allocate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Who needs them; the lines sum up to [`ArenaPlan::bytes`].
    pub fn lines(&self) -> &[MemoryLine] {
        &self.lines
    }
}

/// The value whose region each value has: itself, or the source of a reshape.
fn owners(entry: &Entry) -> Vec<usize> {
    let mut owners: Vec<usize> = (0..entry.values.len()).collect();
    for step in &entry.steps {
        if let Op::Reshape(reshape) = &step.op {
            for output in &step.outputs {
                owners[output.index()] = owners[reshape.x.index()];
            }
        }
    }
    owners
}

/// Half-open ranges of step numbers during which each owner is live.
fn lifetimes(entry: &Entry, owners: &[usize]) -> Vec<Range<usize>> {
    let end = entry.steps.len() + 1;
    // Empty until touched: a start after every step.
    let untouched = Range { start: usize::MAX, end: 0 };
    let mut lives: Vec<Range<usize>> = vec![untouched; entry.values.len()];
    let mut touch = |value: ValueId, at: usize| {
        let life = &mut lives[owners[value.index()]];
        life.start = life.start.min(at);
        life.end = life.end.max(at + 1);
    };
    for input in &entry.inputs {
        touch(input.value, 0);
        touch(input.value, end);
    }
    for (i, step) in entry.steps.iter().enumerate() {
        step.outputs.iter().for_each(|&value| touch(value, i + 1));
        step.op.reads().into_iter().for_each(|value| touch(value, i + 1));
    }
    for output in &entry.outputs {
        touch(output.value, 0);
        touch(output.value, end);
    }
    lives
}

/// The lowest aligned offset where `bytes` meet no placed region that is live at the same time.
fn first_fit(placed: &[(Region, Range<usize>)], life: &Range<usize>, bytes: usize) -> usize {
    let mut blocked: Vec<Region> = placed
        .iter()
        .filter(|(_, other)| other.start < life.end && life.start < other.end)
        .map(|(region, _)| *region)
        .collect();
    blocked.sort_unstable_by_key(|region| region.offset);
    let mut offset = 0;
    for region in blocked {
        if offset + bytes <= region.offset {
            break;
        }
        offset = offset.max((region.offset + region.bytes).next_multiple_of(ALIGNMENT));
    }
    offset
}

/// Inputs and outputs by name, and one line for what the steps share.
fn lines(entry: &Entry, owners: &[usize], regions: &[Region], bytes: usize) -> Vec<MemoryLine> {
    let named = entry
        .inputs
        .iter()
        .map(|i| (format!("input `{}`", i.name), i.value))
        .chain(entry.outputs.iter().map(|o| (format!("output `{}`", o.name), o.value)));
    let mut seen = Vec::new();
    let mut lines = Vec::new();
    for (owner, value) in named {
        let root = owners[value.index()];
        if !seen.contains(&root) {
            seen.push(root);
            lines.push(MemoryLine::new(owner, regions[root].bytes as u64));
        }
    }
    let named: u64 = lines.iter().map(|line| line.bytes).sum();
    lines.push(MemoryLine::new("intermediate values", (bytes as u64).saturating_sub(named)));
    lines
}
