//! `rnn_stack`: for each layer and direction the sums over its inputs as a product, then the
//! recurrence, some time at a time so that the sums do not take more memory than the values. The
//! loop over time is inside a workgroup that can hold the recurrence, else each step is a dispatch.
//! For one series as soon as possible, a workgroup has one row, and its invocations hold the
//! recurrent weights in registers where those suffice (`rnn_row`); where no workgroup can hold the
//! recurrence, many share a step of a row (`rnn_row_step`). For many series, where subgroups
//! multiply matrices together, a workgroup has tens of rows (`rnn_cooperative`).

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::device::KernelClass;
use neural_forecast_runtime::ops::{Cell, Initial, Keep, RnnStack, RnnWeights};
use neural_forecast_runtime::plan::{StateId, ValueId};

use super::build::word;
use super::linear::{Product, Walk};
use super::normalize::NewState;
use super::packer::Packed;
use super::rnn_cooperative::Tiling;
use super::{Build, Loaded, Packer, Part};
use crate::kernel;

/// Elements that the sums over the inputs of a piece of time take at most, unless one step of the
/// batch takes more: 32 MiB.
const SUMS_MAX: usize = 8 << 20;

/// The same where a workgroup reads its weights anew with each piece: 256 MiB.
const SUMS_MAX_COOPERATIVE: usize = 64 << 20;

/// Rows of a workgroup.
const ROWS: usize = 4;

/// Units of a workgroup where each step is a dispatch.
const UNITS: usize = 64;

/// Most units of an invocation.
const UNITS_MAX: usize = 4;

/// Most invocations of a workgroup that every device has.
const SIZE_MAX: usize = 256;

/// Where the parameters of a kernel have the place of the recurrent weights.
const WEIGHT_WORD: usize = 10;

/// Most registers of an invocation that hold recurrent weights.
const KEPT_MAX: usize = 48;

/// Hidden units from which many workgroups share a step of a row: below, one that reads all weights
/// itself is as fast as a dispatch.
const SHARED_FROM: usize = 384;

/// Units of a workgroup of `rnn_row_step`, invocations of a unit, and the bytes of their sums.
const STEP_UNITS: usize = 8;
const STEP_SHARE: usize = 16;
const STEP_BYTES: usize = (STEP_SHARE + 1) * 4 * STEP_UNITS * 4;

/// Bytes that a unit's output takes in workgroup memory, for all rows.
const UNIT_BYTES: usize = 4 * ROWS;

/// One direction of one layer.
#[derive(Debug)]
struct Direction {
    /// Input weights and bias, recurrent weights `[inputs, gates · hidden]` and bias, projection
    /// `[hidden, width]` and as it is stored, `[width, hidden]`; recurrent weights as they are
    /// stored where no workgroup holds the recurrence; weights as `rnn_cooperative` has them, and
    /// the sum of both biases.
    packed: Packed,
    bias_ih: bool,
    bias_hh: bool,
    /// How subgroups share it, where weights are halves.
    tiling: Option<Tiling>,
    /// Inputs of a product over the layer's inputs, and of a unit's recurrence.
    inputs: usize,
    recurrent: usize,
}

#[derive(Debug)]
pub(super) struct LoadedRnn {
    op: RnnStack,
    outputs: Vec<ValueId>,
    layers: Vec<Vec<Direction>>,
}

/// A matrix `[rows, columns]` the other way round.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let column = |c: usize| matrix.iter().skip(c).step_by(columns.max(1)).copied();
    (0..columns).flat_map(column).collect()
}

impl LoadedRnn {
    pub(super) fn load(
        op: &RnnStack,
        outputs: &[ValueId],
        owner: &str,
        packer: &mut Packer<'_>,
    ) -> Result<Self, DeviceError> {
        let mut direction = |weights: &RnnWeights| -> Result<Direction, DeviceError> {
            let last = |id| packer.shape(id).last().copied().unwrap_or(0);
            let (inputs, recurrent) = (last(weights.w_ih), last(weights.w_hh));
            let projection = packer.optional(weights.w_hr)?;
            let (w_ih, b_ih) = (packer.read(weights.w_ih)?, packer.optional(weights.b_ih)?);
            let (w_hh, b_hh) = (packer.read(weights.w_hh)?, packer.optional(weights.b_hh)?);
            let (turned, narrow) =
                (transposed(&w_hh, recurrent), transposed(&projection, op.hidden));
            let rows: &[f32] = if op.hidden >= SHARED_FROM { &w_hh } else { &[] };
            let tiling = Tiling::of(op, inputs).filter(|_| packer.is_half());
            let tiles = tiling.map_or(Vec::new(), |tiling| tiling.pack(&w_ih, &w_hh));
            let biases = match (tiling, b_ih.as_slice(), b_hh.as_slice()) {
                (None, ..) => Vec::new(),
                (_, [], only) | (_, only, []) => only.to_vec(),
                (_, b_ih, b_hh) => b_ih.iter().zip(b_hh).map(|(a, b)| a + b).collect(),
            };
            let parts = [
                Part::Product(&w_ih),
                Part::Single(&b_ih),
                Part::Product(&turned),
                Part::Single(&b_hh),
                Part::Product(&narrow),
                Part::Product(&projection),
                Part::Product(rows),
                Part::Product(&tiles),
                Part::Single(&biases),
            ];
            let packed = packer.pack_parts(owner, &parts)?;
            let (bias_ih, bias_hh) = (weights.b_ih.is_some(), weights.b_hh.is_some());
            Ok(Direction { packed, bias_ih, bias_hh, tiling, inputs, recurrent })
        };
        let mut layers = Vec::new();
        for layer in &op.layers {
            layers.push(layer.iter().map(&mut direction).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(LoadedRnn { op: op.clone(), outputs: outputs.to_vec(), layers })
    }

    fn gates(&self) -> usize {
        self.op.cell.gates()
    }

    /// Invocations of a workgroup, each with some of the units.
    fn size(&self) -> usize {
        self.op.hidden.next_multiple_of(32).min(SIZE_MAX)
    }

    /// Whether a workgroup holds the recurrence: its outputs in workgroup memory, the rest of its
    /// state in registers.
    fn fits(&self, b: &Build<'_>) -> bool {
        let (hidden, width) = (self.op.hidden, self.op.width());
        let wide = if self.op.projection.is_some() { hidden } else { 1 };
        let most = b.limits().max_compute_workgroup_storage_size as usize;
        hidden <= SIZE_MAX * UNITS_MAX && (width + wide) * UNIT_BYTES <= most
    }

    /// How a workgroup holds the recurrence of one row in the registers of its invocations, where
    /// it can: slices of the recurrent inputs of a unit, and fours of inputs of a slice.
    fn in_registers(&self, b: &Build<'_>) -> Option<(usize, usize)> {
        let (op, limits) = (&self.op, b.limits());
        let most = limits.max_compute_invocations_per_workgroup as usize;
        let most = most.min(limits.max_compute_workgroup_size_x as usize);
        if op.projection.is_some() || matches!(op.cell, Cell::Slstm { .. }) || op.hidden == 0 {
            return None;
        }
        let slices = (most / op.hidden).min(op.hidden.div_ceil(4)).min(16);
        let fours = op.hidden.div_ceil(4).div_ceil(slices.max(1));
        let slices = op.hidden.div_ceil(4).div_ceil(fours);
        let kept = self.gates() * fours * if b.is_half() { 2 } else { 4 };
        let bytes = (slices * fours + slices * op.hidden) * 16;
        let fits = kept <= KEPT_MAX && bytes <= limits.max_compute_workgroup_storage_size as usize;
        (slices > 0 && fits).then_some((slices, fours))
    }

    /// Where a state of one layer and direction begins.
    fn begin(&self, b: &Build<'_>, kind: usize, number: usize) -> Begin {
        let width = self.state_width(kind);
        let row = self.op.layers.len() * self.op.directions() * width;
        let at = |place: u32| place + word(number * width);
        match (&self.op.initial, self.slot(kind)) {
            (Initial::Values(values), _) => {
                Begin { mode: 1, place: at(b.value(values[kind])), row }
            }
            (Initial::Slots, Some(slot)) => Begin { mode: 2, place: at(b.state(slot)), row },
            _ => Begin { mode: 0, place: 0, row: 0 },
        }
    }

    fn slot(&self, kind: usize) -> Option<StateId> {
        self.op.states.as_ref().map(|states| states.slots[kind])
    }

    fn state_width(&self, kind: usize) -> usize {
        self.op.state_width(self.op.cell.states()[kind])
    }
}

/// Where a state is before a piece of time.
#[derive(Clone, Copy)]
struct Begin {
    /// 0 zeros, 1 the arena, 2 the store.
    mode: u32,
    place: u32,
    /// Elements to the next row.
    row: usize,
}

/// What steps that are dispatches of their own hand on.
struct Between {
    /// Where the next step's states are.
    begins: Vec<Begin>,
    /// The two places that states go back and forth between.
    places: [Vec<(u32, usize)>; 2],
    /// What is projected.
    wide: Option<u32>,
}

/// Where the first step's sums and outputs of row 0 are, elements to the next step's (they wrap
/// where time goes backwards), and which steps are written.
#[derive(Clone, Copy)]
struct StepPlaces {
    sums: u32,
    sums_step: u32,
    y: u32,
    y_step: u32,
    written: (usize, usize),
}

/// A layer's input or output: place of row 0 and step 0, elements to the next row and step.
#[derive(Clone, Copy)]
struct Series {
    place: u32,
    row: usize,
    step: usize,
}

/// One direction of one layer while it is dispatched.
struct Way<'a> {
    stack: &'a LoadedRnn,
    direction: &'a Direction,
    /// Number of layer and direction, and whether time goes backwards.
    number: usize,
    backwards: bool,
    x: Series,
    /// First step is the first that is kept.
    y: Series,
    kept: usize,
    rows: usize,
    time: usize,
    /// For each state where it ends: place, elements to the next row.
    ends: Vec<(u32, usize)>,
}

impl Way<'_> {
    /// Sums over the inputs of steps `[begin, end)` into `sums`.
    fn push_sums(
        &self,
        b: &mut Build<'_>,
        sums: u32,
        (begin, end): (usize, usize),
        bias: Option<u32>,
    ) -> Result<(), DeviceError> {
        let (op, direction) = (&self.stack.op, self.direction);
        let steps = end - begin;
        let gates = self.stack.gates() * op.hidden;
        let (outputs, blocks) = match op.cell {
            Cell::Slstm { heads } => {
                let each = op.hidden / heads;
                (each, [self.stack.gates() * heads, heads, direction.inputs, each])
            }
            _ => (gates, [1, 1, 0, 0]),
        };
        let walk = Walk {
            rows: self.rows * steps,
            inputs: direction.inputs,
            outputs,
            inner: steps.max(1),
            x: [self.x.row, self.x.step, 1],
            y: [steps * gates, gates, 1],
            blocks,
        };
        let product = Product {
            x: self.x.place + word(begin * self.x.step),
            y: sums,
            weight: direction.packed.places[0],
            bias,
            ..Product::default()
        };
        product.push(b, &walk, direction.packed.buffer, self.stack.outputs[0])
    }

    /// Where the sums and outputs of steps `[begin, end)` of time are, in the order of the steps;
    /// `gates` elements of sums a step.
    fn places(&self, (sums, gates): (u32, usize), (begin, end): (usize, usize)) -> StepPlaces {
        let (steps, dropped) = (end - begin, self.time - self.kept);
        // Differences may be negative; the kernel's additions wrap as these do.
        let shifted = |place: u32, steps: isize, stride: usize| {
            place.wrapping_add((steps * stride as isize) as u32)
        };
        if self.backwards {
            let last = end as isize - 1;
            return StepPlaces {
                sums: shifted(sums, last - begin as isize, gates),
                sums_step: (gates as u32).wrapping_neg(),
                y: shifted(self.y.place, last - dropped as isize, self.y.step),
                y_step: (self.y.step as u32).wrapping_neg(),
                written: (0, end.saturating_sub(dropped).min(steps)),
            };
        }
        StepPlaces {
            sums,
            sums_step: word(gates),
            y: shifted(self.y.place, begin as isize - dropped as isize, self.y.step),
            y_step: word(self.y.step),
            written: (dropped.saturating_sub(begin).min(steps), steps),
        }
    }

    /// Parameters of a kernel over `steps` steps, of `sums_row` elements of sums a row.
    fn words(
        &self,
        places: &StepPlaces,
        (steps, sums_row): (usize, usize),
        begins: &[Begin],
        ends: &[(u32, usize)],
    ) -> Vec<u32> {
        let op = &self.stack.op;
        let mut words = vec![places.sums, word(sums_row), places.sums_step];
        words.extend([places.y, word(self.y.row), places.y_step]);
        words.extend([self.rows, steps, places.written.0, places.written.1].map(word));
        words.extend(&self.direction.packed.places[2..5]);
        let shared_by = match op.cell {
            Cell::Slstm { heads } => op.hidden / heads,
            _ => op.hidden,
        };
        words.extend([self.direction.recurrent, shared_by, op.hidden].map(word));
        let mut four = |numbers: &mut dyn Iterator<Item = u32>| {
            words.extend(numbers.chain([0; 4]).take(4));
        };
        four(&mut begins.iter().map(|begin| begin.place));
        four(&mut begins.iter().map(|begin| word(begin.row)));
        four(&mut ends.iter().map(|&(place, _)| place));
        four(&mut ends.iter().map(|&(_, row)| word(row)));
        words
    }

    /// Constants that both kernels have.
    fn constants(&self, mode: u32) -> Vec<(&'static str, u32)> {
        vec![
            ("CELL", cell_number(self.stack.op.cell)),
            ("GATES", word(self.stack.gates())),
            ("BIAS", u32::from(self.direction.bias_hh)),
            ("BEGIN", mode),
        ]
    }

    /// Where the states of the piece of time begins: `first` is the one from the initial state.
    fn begins(&self, b: &Build<'_>, first: bool) -> Vec<Begin> {
        match first {
            true => {
                (0..self.ends.len()).map(|kind| self.stack.begin(b, kind, self.number)).collect()
            }
            false => self.ends.iter().map(|&(place, row)| Begin { mode: 1, place, row }).collect(),
        }
    }

    /// The recurrence over steps `[begin, end)` in one workgroup for each four rows.
    fn push_loop(
        &self,
        b: &mut Build<'_>,
        sums: u32,
        range: (usize, usize),
        first: bool,
    ) -> Result<(), DeviceError> {
        let (stack, op) = (self.stack, &self.stack.op);
        let steps = range.1 - range.0;
        let begins = self.begins(b, first);
        let gates = stack.gates() * op.hidden;
        let places = self.places((sums, gates), range);
        let words = self.words(&places, (steps, steps * gates), &begins, &self.ends);
        if b.class() == KernelClass::Latency
            && let Some((slices, fours)) = stack.in_registers(b)
        {
            let mut constants = self.constants(begins[0].mode);
            constants.extend([
                ("SLICES", word(slices)),
                ("FOURS", word(fours)),
                ("HIDDEN", word(op.hidden)),
                ("SIZE", word((slices * op.hidden).next_multiple_of(32))),
            ]);
            let grid = b.grid(stack.outputs[0], self.rows, 1, 1);
            let kernel = b.either(&kernel::RNN_ROW, &kernel::RNN_ROW_HALF);
            return b.dispatch(kernel, &constants, words, (self.direction.packed.buffer, grid));
        }
        let size = stack.size();
        let projected = op.projection.is_some();
        let mut constants = self.constants(begins[0].mode);
        constants.extend([
            ("UNITS", word(op.hidden.div_ceil(size))),
            ("SIZE", word(size)),
            ("WIDTH", word(op.width())),
            ("HIDDEN", if projected { word(op.hidden) } else { 1 }),
            ("PROJECTED", u32::from(projected)),
        ]);
        let grid = b.grid(stack.outputs[0], self.rows, ROWS, 1);
        let kernel = b.either(&kernel::RNN_STACK, &kernel::RNN_STACK_HALF);
        b.dispatch(kernel, &constants, words, (self.direction.packed.buffer, grid))
    }

    /// How subgroups share the recurrence, and their lanes, where they do: for many series.
    fn cooperative(&self, b: &Build<'_>) -> Option<(Tiling, u32)> {
        let lanes = b.cooperative().filter(|_| b.class() == KernelClass::Throughput)?;
        let tiling = self.direction.tiling.filter(|_| self.time > 0)?;
        let most = b.limits().max_compute_workgroup_storage_size as usize;
        let strides = [self.y.place as usize, self.y.row, self.y.step];
        let ends = self.ends.iter().flat_map(|&(place, row)| [place as usize, row]);
        let in_fours = strides.into_iter().chain(ends).all(|place| place.is_multiple_of(4));
        (in_fours && tiling.bytes() <= most).then_some((tiling, lanes))
    }

    /// The recurrence over steps `[begin, end)` where subgroups share it: after the sums over the
    /// inputs, of which there are `row` elements a row, or with the inputs among its operands.
    fn push_cooperative(
        &self,
        b: &mut Build<'_>,
        (tiling, lanes): (Tiling, u32),
        (sums, row, step): (u32, usize, usize),
        range: (usize, usize),
        first: bool,
    ) -> Result<(), DeviceError> {
        let begins = self.begins(b, first);
        let places = self.places((sums, step), range);
        let mut words = self.words(&places, (range.1 - range.0, row), &begins, &self.ends);
        words[WEIGHT_WORD] = self.direction.packed.places[7];
        let mut constants = self.constants(begins[0].mode);
        if self.stack.op.cell != Cell::Gru {
            // Where the inputs' sums are there before, both biases are in them.
            let is_here = tiling.is_joint() && (self.direction.bias_ih || self.direction.bias_hh);
            words[WEIGHT_WORD + 1] = self.direction.packed.places[8];
            constants.retain(|(name, _)| *name != "BIAS");
            constants.push(("BIAS", u32::from(is_here)));
        }
        constants.extend(tiling.constants(lanes));
        let grid = b.grid(self.stack.outputs[0], self.rows, tiling.rows(), 1);
        let place = (self.direction.packed.buffer, grid);
        b.dispatch(&kernel::RNN_COOPERATIVE, &constants, words, place)
    }

    /// The same with a dispatch for each step, `before` of which are behind it: states go back and
    /// forth between two places, and to their ends with the last step.
    fn push_each(
        &self,
        b: &mut Build<'_>,
        sums: u32,
        range: (usize, usize),
        (before, between): (usize, &mut Between),
    ) -> Result<(), DeviceError> {
        let (stack, op) = (self.stack, &self.stack.op);
        let steps = range.1 - range.0;
        let gates = stack.gates() * op.hidden;
        let places = self.places((sums, gates), range);
        for step in 0..steps {
            let number = before + step;
            let ends =
                if number + 1 == self.time { &self.ends } else { &between.places[number % 2] };
            let kept = (places.written.0..places.written.1).contains(&step);
            let at = |place: u32, stride: u32| place.wrapping_add(stride.wrapping_mul(step as u32));
            let y = at(places.y, places.y_step);
            let place = StepPlaces {
                sums: at(places.sums, places.sums_step),
                y,
                written: (0, usize::from(kept && between.wide.is_none())),
                ..places
            };
            let mut written = ends.clone();
            if let Some(wide) = between.wide {
                written[0] = (wide, op.hidden);
            }
            let mut words = self.words(&place, (1, steps * gates), &between.begins, &written);
            let mut constants = self.constants(between.begins[0].mode);
            let (kernel, grid) = match self.shared_fours(b) {
                Some(fours) => {
                    words[WEIGHT_WORD] = self.direction.packed.places[6];
                    constants.extend([("UNITS", word(STEP_UNITS)), ("FOURS", word(fours))]);
                    let blocks = op.hidden.div_ceil(STEP_UNITS);
                    let kernel = b.either(&kernel::RNN_ROW_STEP, &kernel::RNN_ROW_STEP_HALF);
                    (kernel, b.grid(stack.outputs[0], self.rows, 1, blocks))
                }
                None => {
                    let blocks = op.hidden.div_ceil(UNITS);
                    let kernel = b.either(&kernel::RNN_STEP, &kernel::RNN_STEP_HALF);
                    (kernel, b.grid(stack.outputs[0], self.rows, ROWS, blocks))
                }
            };
            b.dispatch(kernel, &constants, words, (self.direction.packed.buffer, grid))?;
            if let Some(wide) = between.wide {
                self.project(b, wide, ends[0])?;
                if kept {
                    self.project(b, wide, (y, self.y.row))?;
                }
            }
            let begins = ends.iter().map(|&(place, row)| Begin { mode: 1, place, row });
            between.begins = begins.collect();
        }
        Ok(())
    }

    /// Recurrent inputs in fours where many workgroups share a step of a row: for one series as
    /// soon as possible, where workgroup memory has room for them.
    fn shared_fours(&self, b: &Build<'_>) -> Option<usize> {
        let fours = self.direction.recurrent.div_ceil(4);
        let most = b.limits().max_compute_workgroup_storage_size as usize;
        let wide = self.stack.op.hidden >= SHARED_FROM && b.class() == KernelClass::Latency;
        (wide && fours * 16 + STEP_BYTES <= most).then_some(fours)
    }

    /// Places between steps that are dispatches of their own.
    fn between(&self, b: &mut Build<'_>) -> Between {
        let own = |b: &mut Build<'_>| -> Vec<(u32, usize)> {
            let widths = (0..self.ends.len()).map(|kind| self.stack.state_width(kind));
            widths.map(|width| (b.scratch(self.rows * width), width)).collect()
        };
        let op = &self.stack.op;
        Between {
            begins: self.begins(b, true),
            places: [own(b), own(b)],
            wide: op.projection.map(|_| b.scratch(self.rows * op.hidden)),
        }
    }

    /// The projection of rows of `hidden` elements to rows at a place.
    fn project(
        &self,
        b: &mut Build<'_>,
        wide: u32,
        (y, row): (u32, usize),
    ) -> Result<(), DeviceError> {
        let op = &self.stack.op;
        let plain = Walk::plain(self.rows, op.hidden, op.width());
        let walk = Walk { y: [row, 0, 1], ..plain };
        let weight = self.direction.packed.places[5];
        let product = Product { x: wide, y, weight, ..Product::default() };
        product.push(b, &walk, self.direction.packed.buffer, self.stack.outputs[0])
    }

    fn push(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.stack.op;
        let gates = self.stack.gates() * op.hidden;
        let binding = (b.limits().max_storage_buffer_binding_size / 16) as usize;
        let cooperative = self.cooperative(b);
        let most = if cooperative.is_some() { SUMS_MAX_COOPERATIVE } else { SUMS_MAX };
        let each = (most.min(binding) / (self.rows * gates).max(1)).clamp(1, self.time.max(1));
        let mark = b.scratch_mark();
        let packed = &self.direction.packed;
        let mut bias = self.direction.bias_ih.then_some(packed.places[1]);
        if cooperative.is_some() && op.cell != Cell::Gru && self.direction.bias_hh {
            bias = Some(packed.places[8]);
        }
        if let Some((tiling, lanes)) = cooperative.filter(|(tiling, _)| tiling.is_joint()) {
            let x = (self.x.place, self.x.row, self.x.step);
            self.push_cooperative(b, (tiling, lanes), x, (0, self.time), true)?;
            return self.push_states(b);
        }
        let sums = b.scratch(self.rows * each * gates);
        let pieces = self.time.div_ceil(each).max(1);
        // Without any step there is nothing to hold: the loop passes the initial state on.
        let shared = self.shared_fours(b).is_some();
        let looped = self.time == 0 || cooperative.is_some() || (self.stack.fits(b) && !shared);
        let mut between = (!looped).then(|| self.between(b));
        let mut before = 0;
        for piece in 0..pieces {
            let in_time = if self.backwards { pieces - 1 - piece } else { piece };
            let range = (in_time * each, ((in_time + 1) * each).min(self.time));
            self.push_sums(b, sums, range, bias)?;
            match (cooperative, &mut between) {
                (Some(how), _) => {
                    let sums = (sums, (range.1 - range.0) * gates, gates);
                    self.push_cooperative(b, how, sums, range, piece == 0)?;
                }
                (None, None) => self.push_loop(b, sums, range, piece == 0)?,
                (None, Some(between)) => self.push_each(b, sums, range, (before, between))?,
            }
            before += range.1 - range.0;
        }
        b.scratch_release(mark);
        self.push_states(b)
    }

    /// The states at the end into the store, where they are kept there.
    fn push_states(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.stack.op;
        if !op.states.as_ref().is_some_and(|states| states.write) {
            return Ok(());
        }
        for (kind, &(from, row)) in self.ends.iter().enumerate() {
            let Some(slot) = self.stack.slot(kind) else { continue };
            let width = self.stack.state_width(kind);
            let new = NewState { from, row, first: self.number * width, copied: width };
            let store = (b.state(slot), b.state_elements(slot));
            new.commit(b, store, self.rows, self.stack.outputs[0])?;
        }
        Ok(())
    }
}

/// A cell's number in `wgsl/cell.wgsl`.
fn cell_number(cell: Cell) -> u32 {
    match cell {
        Cell::Lstm => 0,
        Cell::Gru => 1,
        Cell::RnnTanh => 2,
        Cell::RnnRelu => 3,
        Cell::Slstm { .. } => 4,
    }
}

impl Loaded for LoadedRnn {
    fn build(&self, b: &mut Build<'_>) -> Result<(), DeviceError> {
        let op = &self.op;
        let shape = b.shape(op.x);
        let (rows, time, inputs) = (shape[0], shape[1], shape[2]);
        let directions = op.directions();
        let width = directions * op.width();
        let count = op.layers.len();
        // Outputs of layers that are not the last take turns in two places.
        let between = |b: &mut Build<'_>| b.scratch(rows * time * width);
        let places = match count {
            1 => [0, 0],
            2 => [between(b), 0],
            _ => [between(b), between(b)],
        };
        let kinds = op.cell.states().len();
        let mut x = Series { place: b.value(op.x), row: time * inputs, step: inputs };
        for (l, layer) in self.layers.iter().enumerate() {
            let kept = match op.keep {
                Keep::Last(n) if l + 1 == count => n,
                _ => time,
            };
            let place = if l + 1 == count { b.value(self.outputs[0]) } else { places[l % 2] };
            let y = Series { place, row: kept * width, step: width };
            for (d, direction) in layer.iter().enumerate() {
                let number = l * directions + d;
                let ends = (0..kinds).map(|kind| {
                    let own = self.state_width(kind);
                    match self.outputs.get(1 + kind) {
                        Some(&id) if op.finals => {
                            (b.value(id) + word(number * own), count * directions * own)
                        }
                        _ => (b.scratch(rows * own), own),
                    }
                });
                let ends = ends.collect();
                let y = Series { place: y.place + word(d * op.width()), ..y };
                let backwards = d == 1;
                // Going back, positions before the first that is kept change nothing that is kept.
                let keeps_end = op.finals || op.states.as_ref().is_some_and(|states| states.write);
                let needed = if backwards && !keeps_end { kept.min(time) } else { time };
                let x = Series { place: x.place + word((time - needed) * x.step), ..x };
                let time = needed;
                Way { stack: self, direction, number, backwards, x, y, kept, rows, time, ends }
                    .push(b)?;
            }
            x = y;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_turned() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(transposed(&[], 0).is_empty() && transposed(&[], 2).is_empty());
    }
}
