//! What a step sees while a program is compiled: addresses, sizes, and where to put launches.
//!
//! Hands out addresses; owns no memory and launches nothing.

use std::cell::Cell;

use neural_forecast_runtime::arena::ALIGNMENT;
use neural_forecast_runtime::device::{KernelClass, Precision};
use neural_forecast_runtime::plan::{Bucket, StateId, ValueId};

use super::gemm::Element;
use crate::gpu::Gpu;
use crate::launch::Launch;

/// Where the parts of a program are in device memory. Values are f32 or i32, row-major, 256-byte
/// aligned; inputs may be 16-bit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Of each value of the entry.
    pub(crate) values: Vec<u64>,
    /// Shape of each value in the bucket.
    pub(crate) shapes: Vec<Vec<usize>>,
    /// Format of each value; f32 where there is nothing. What `Loaded::rounds` allows.
    pub(crate) elements: Vec<Element>,
    /// Of each state's store: `[slots, elements]` f32.
    pub(crate) states: Vec<u64>,
    /// Of the rows that a run's new states are written to before they are committed:
    /// `[batch, elements]` f32; 0 for a state that the entry does not touch.
    pub(crate) new_states: Vec<u64>,
    /// Of the run header (`RunHeader` in `ptx/run.cuh`): sequence number, rows, slot of each row.
    pub(crate) header: u64,
    /// Of memory that a step may use while it runs.
    pub(crate) scratch: u64,
    /// Of memory that is zero when the program is made, and that only its owner writes.
    pub(crate) persistent: u64,
}

/// A program being compiled.
pub(crate) struct Build<'a> {
    gpu: &'a Gpu,
    precision: Precision,
    class: KernelClass,
    bucket: Bucket,
    places: &'a Places,
    launches: Vec<Launch>,
    scratch_used: u64,
    scratch_max: u64,
    persistent_used: u64,
    header_asked: Cell<bool>,
}

impl<'a> Build<'a> {
    pub(crate) fn new(
        gpu: &'a Gpu,
        precision: Precision,
        class: KernelClass,
        bucket: Bucket,
        places: &'a Places,
    ) -> Self {
        Build {
            gpu,
            precision,
            class,
            bucket,
            places,
            launches: Vec::new(),
            scratch_used: 0,
            scratch_max: 0,
            persistent_used: 0,
            header_asked: Cell::new(false),
        }
    }

    /// The GPU.
    pub(crate) fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// The precision.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Which kernels. Bits may depend on this and never on the bucket's batch.
    pub(crate) fn class(&self) -> KernelClass {
        self.class
    }

    /// Batch and context length.
    pub(crate) fn bucket(&self) -> Bucket {
        self.bucket
    }

    /// Device address of a value.
    pub(crate) fn value(&self, id: ValueId) -> u64 {
        self.places.values[id.index()]
    }

    /// Format of a value's numbers, rows without gaps.
    pub(crate) fn element(&self, id: ValueId) -> Element {
        self.places.elements.get(id.index()).copied().unwrap_or(Element::F32)
    }

    /// Shape of a value in the bucket.
    pub(crate) fn shape(&self, id: ValueId) -> &'a [usize] {
        &self.places.shapes[id.index()]
    }

    /// Device address of a state's store: `[slots, elements]` f32. A row's slot is
    /// `header.slots[row]`.
    pub(crate) fn state(&self, id: StateId) -> u64 {
        self.places.states[id.index()]
    }

    /// Device address where a step writes the new state of every row: `[batch, elements]` f32,
    /// committed to the store when the run has succeeded. Every element of every row in use must
    /// be written.
    pub(crate) fn new_state(&self, id: StateId) -> u64 {
        self.places.new_states[id.index()]
    }

    /// Device address of the run header (`RunHeader` in `ptx/run.cuh`).
    pub(crate) fn header(&self) -> u64 {
        self.header_asked.set(true);
        self.places.header
    }

    /// Whether a step has asked for the header.
    pub(crate) fn needs_header(&self) -> bool {
        self.header_asked.get()
    }

    /// Device address of uninitialised memory for this step alone, 256-byte aligned.
    pub(crate) fn scratch(&mut self, bytes: usize) -> u64 {
        let address = self.places.scratch + self.scratch_used;
        self.scratch_used += bytes.next_multiple_of(ALIGNMENT) as u64;
        self.scratch_max = self.scratch_max.max(self.scratch_used);
        address
    }

    /// What [`Build::scratch_release`] takes, to free what the step asks for from here on.
    pub(crate) fn scratch_mark(&self) -> u64 {
        self.scratch_used
    }

    /// Gives scratch back before the step ends: launches run one after another.
    pub(crate) fn scratch_release(&mut self, mark: u64) {
        self.scratch_used = mark;
    }

    /// Device address of memory that was zero when the program was made, keeps its contents from
    /// run to run, and that nobody else touches: flags of blocks that wait for one another.
    pub(crate) fn persistent(&mut self, bytes: usize) -> u64 {
        let address = self.places.persistent + self.persistent_used;
        self.persistent_used += bytes.next_multiple_of(ALIGNMENT) as u64;
        address
    }

    /// Whether this is the first of two passes: scratch and persistent addresses are not real
    /// yet, so nothing that the driver checks (a tensor map) can be made of them.
    pub(crate) fn is_sizing(&self) -> bool {
        self.places.scratch == 0
    }

    /// Appends a launch.
    pub(crate) fn launch(&mut self, launch: Launch) {
        self.launches.push(launch);
    }

    /// Ends a step: its scratch is free for the next.
    pub(crate) fn end_step(&mut self) {
        self.scratch_used = 0;
    }

    /// The launches, the bytes of scratch, and the bytes of persistent memory.
    pub(crate) fn finish(self) -> (Vec<Launch>, u64, u64) {
        (self.launches, self.scratch_max, self.persistent_used)
    }
}
