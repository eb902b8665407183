//! What a step sees while a program is compiled: places, sizes, and where to put dispatches.
//!
//! Places count 32-bit elements of the arena. Owns no memory and dispatches nothing.

use neural_forecast_runtime::arena::ALIGNMENT;
use neural_forecast_runtime::device::{KernelClass, Request};
use neural_forecast_runtime::plan::{Bucket, StateId, ValueId};
use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::kernel::{Constants, Kernel};
use crate::resident::StatePlace;

/// Elements that places are multiples of.
const ALIGNED: usize = ALIGNMENT / 4;

/// Where the parts of a program are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Of each value of the entry.
    pub(crate) values: Vec<usize>,
    /// Shape of each value in the bucket.
    pub(crate) shapes: Vec<Vec<usize>>,
    /// Whether each value's first axis is the batch.
    pub(crate) batched: Vec<bool>,
    /// Of each state in the store.
    pub(crate) states: Vec<StatePlace>,
    /// Of memory that a step may use while it runs.
    pub(crate) scratch: usize,
    /// Of what is fixed when the program is compiled.
    pub(crate) constants: usize,
}

/// How many workgroups a run needs: `⌈units / group⌉ · times`, units being in proportion to the
/// rows in use where there is a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Units of a row of the bucket where `batched`, else of all.
    units: u64,
    batched: bool,
    /// Units of a workgroup.
    group: u32,
    /// Workgroups for each such group.
    times: u64,
}

/// Most workgroups along one dimension of a grid that WebGPU guarantees.
const ALONG_MAX: u64 = 65_535;

impl Grid {
    fn count(&self, rows: usize) -> u64 {
        let units = if self.batched { self.units * rows as u64 } else { self.units };
        units.div_ceil(u64::from(self.group)) * self.times
    }

    /// Workgroups in two dimensions, for so many rows in use.
    pub(crate) fn workgroups(&self, rows: usize) -> (u32, u32) {
        let count = self.count(rows);
        let along = count.min(ALONG_MAX);
        // Checked when the program was compiled: both are at most `ALONG_MAX`.
        (along as u32, count.div_ceil(along.max(1)) as u32)
    }
}

/// One kernel with everything that it is given.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) kernel: &'static Kernel,
    pub(crate) constants: Constants,
    /// Its parameters, as the kernel's struct has them.
    pub(crate) words: Vec<u32>,
    /// Index of the buffer of packed weights.
    pub(crate) weights: usize,
    pub(crate) grid: Grid,
    /// The name it is counted under.
    pub(crate) counter: String,
}

/// What kernels may rely on while a program is compiled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means<'a> {
    pub(crate) limits: &'a wgpu::Limits,
    /// Whether weights of products are in half precision.
    pub(crate) half: bool,
    /// Lanes of the subgroups that multiply matrices of 16 by 16 together, where they can.
    pub(crate) cooperative: Option<u32>,
}

/// A program being compiled.
pub(crate) struct Build<'a> {
    means: Means<'a>,
    request: Request,
    places: &'a Places,
    dispatches: Vec<Dispatch>,
    scratch_used: usize,
    scratch_max: usize,
    constants: Vec<u32>,
}

impl<'a> Build<'a> {
    pub(crate) fn new(means: Means<'a>, request: Request, places: &'a Places) -> Self {
        Build {
            means,
            request,
            places,
            dispatches: Vec::new(),
            scratch_used: 0,
            scratch_max: 0,
            constants: Vec::new(),
        }
    }

    /// What the device can bind and run.
    pub(crate) fn limits(&self) -> &'a wgpu::Limits {
        self.means.limits
    }

    /// Of two kernels of the same text the one for the format that weights of products have.
    pub(crate) fn either(&self, single: &'static Kernel, half: &'static Kernel) -> &'static Kernel {
        if self.means.half { half } else { single }
    }

    /// Whether weights of products are in half precision.
    pub(crate) fn is_half(&self) -> bool {
        self.means.half
    }

    /// Lanes of the subgroups that multiply matrices in half precision together, where weights are
    /// that and subgroups can.
    pub(crate) fn cooperative(&self) -> Option<u32> {
        self.means.cooperative.filter(|_| self.means.half)
    }

    /// Which kernels. Bits may depend on this and never on the bucket's batch.
    pub(crate) fn class(&self) -> KernelClass {
        self.request.class
    }

    /// Batch and context length.
    pub(crate) fn bucket(&self) -> Bucket {
        self.request.bucket
    }

    /// Place of a value.
    pub(crate) fn value(&self, id: ValueId) -> u32 {
        word(self.places.values[id.index()])
    }

    /// Shape of a value in the bucket.
    pub(crate) fn shape(&self, id: ValueId) -> &'a [usize] {
        &self.places.shapes[id.index()]
    }

    /// Place of a state in the store: `[slots, elements]`.
    pub(crate) fn state(&self, id: StateId) -> u32 {
        word(self.places.states[id.index()].first)
    }

    /// Elements of a slot of a state.
    pub(crate) fn state_elements(&self, id: StateId) -> usize {
        self.places.states[id.index()].elements
    }

    /// Place of uninitialised memory for this step alone.
    pub(crate) fn scratch(&mut self, elements: usize) -> u32 {
        let place = self.places.scratch + self.scratch_used;
        self.scratch_used += elements.next_multiple_of(ALIGNED);
        self.scratch_max = self.scratch_max.max(self.scratch_used);
        word(place)
    }

    /// What [`Build::scratch_release`] takes, to free what the step asks for from here on.
    pub(crate) fn scratch_mark(&self) -> usize {
        self.scratch_used
    }

    /// Gives scratch back before the step ends: dispatches run one after another.
    pub(crate) fn scratch_release(&mut self, mark: usize) {
        self.scratch_used = mark;
    }

    /// Place of words that are in the arena from the beginning and stay.
    pub(crate) fn constants(&mut self, words: &[u32]) -> u32 {
        let place = self.places.constants + self.constants.len();
        self.constants.extend_from_slice(words);
        word(place)
    }

    /// The grid of a step that writes `value`: `units` of work in a full bucket, `group` of them a
    /// workgroup, `times` workgroups for each.
    pub(crate) fn grid(&self, value: ValueId, units: usize, group: usize, times: usize) -> Grid {
        let batched = self.places.batched[value.index()];
        let units = if batched { units / self.request.bucket.batch.max(1) } else { units };
        Grid { batched, ..self.fixed_grid(units, group, times) }
    }

    /// As [`Build::grid`], the same for every number of rows in use.
    pub(crate) fn fixed_grid(&self, units: usize, group: usize, times: usize) -> Grid {
        Grid { units: units as u64, batched: false, group: word(group), times: times as u64 }
    }

    /// Appends a dispatch; none where there is nothing to do.
    ///
    /// # Errors
    /// `Unsupported` where it needs more workgroups than there can be.
    ///
    /// # Panics
    /// If the parameters are not as many as the kernel has: a bug of the step.
    pub(crate) fn dispatch(
        &mut self,
        kernel: &'static Kernel,
        constants: &[(&'static str, u32)],
        words: Vec<u32>,
        (weights, grid): (usize, Grid),
    ) -> Result<(), DeviceError> {
        assert_eq!(words.len(), kernel.words, "parameters of kernel `{}`", kernel.name);
        let count = grid.count(self.request.bucket.batch);
        if count > ALONG_MAX * ALONG_MAX {
            let name = kernel.name;
            let message = format!("kernel `{name}` needs {count} workgroups, more than there are");
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, message));
        }
        if count > 0 {
            let counter = kernel.counter();
            let constants = constants.to_vec();
            self.dispatches.push(Dispatch { kernel, constants, words, weights, grid, counter });
        }
        Ok(())
    }

    /// Ends a step: its scratch is free for the next.
    pub(crate) fn end_step(&mut self) {
        self.scratch_used = 0;
    }

    /// The dispatches, the elements of scratch, and the constants.
    pub(crate) fn finish(self) -> (Vec<Dispatch>, usize, Vec<u32>) {
        (self.dispatches, self.scratch_max, self.constants)
    }
}

/// A size or place as kernels have it. All are within a binding, whose bytes are a `u32`'s range at
/// most on every device that wgpu knows, or the program is refused before it is made.
pub(crate) fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_follow_the_rows_in_use() {
        let grid = Grid { units: 100, batched: true, group: 64, times: 3 };
        assert_eq!(grid.workgroups(1), (6, 1));
        assert_eq!(grid.workgroups(4), (21, 1));
        let fixed = Grid { batched: false, ..grid };
        assert_eq!(fixed.workgroups(4), (6, 1));
        let (x, y) = Grid { units: 70_000, batched: false, group: 1, times: 1 }.workgroups(1);
        assert!(u64::from(x) * u64::from(y) >= 70_000 && x <= 65_535 && y <= 65_535);
    }
}
