//! What devices that compute with the reference share: a loaded plan with its state slots and
//! memory budget, and a program's host buffers.
//!
//! Not the contract (that is [`crate::device`]) and not the mathematics (that is [`crate::ops`]).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Tensor, load_weights};
use crate::arena::MemoryLine;
use crate::device::{Data, LoadOptions, ProgramInfo, WeightSource};
use crate::error::{DeviceError, DeviceErrorKind};
use crate::plan::{Bucket, DType, Entry, Plan, sizes};

/// A plan with weights and states, shared by a resident plan and its programs.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) plan: Plan,
    pub(crate) weights: Vec<Tensor>,
    pub(crate) options: LoadOptions,
    /// For each slot, each state's elements. In f32, as devices keep them.
    slots: Mutex<Vec<Vec<Vec<f32>>>>,
    bytes: Mutex<u64>,
}

impl Loaded {
    /// Reads the weights and allocates the states, within the budget.
    pub(crate) fn new(
        plan: Plan,
        source: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Loaded, DeviceError> {
        let weights = load_weights(&plan, source)?;
        let fresh: Vec<Vec<f32>> =
            plan.states.iter().map(|state| vec![0.0; state.shape.iter().product()]).collect();
        let slots = Mutex::new(vec![fresh; options.state_slots]);
        let options = options.clone();
        let loaded = Loaded { plan, weights, options, slots, bytes: Mutex::new(0) };
        let resident = loaded.memory().iter().map(|line| line.bytes).sum();
        loaded.reserve("weights and states", resident)?;
        Ok(loaded)
    }

    /// Weights and states, one line each.
    pub(crate) fn memory(&self) -> Vec<MemoryLine> {
        let weight_bytes = self.options.precision.weight_bytes() as u64;
        let weights = self.plan.weights.iter().map(|weight| {
            let elements = weight.shape.iter().product::<usize>() as u64;
            MemoryLine::new(format!("weight `{}`", weight.name), elements * weight_bytes)
        });
        let states = self.plan.states.iter().map(|state| {
            let elements = state.shape.iter().product::<usize>() * self.options.state_slots;
            MemoryLine::new(format!("state `{}`", state.name), elements as u64 * 4)
        });
        weights.chain(states).collect()
    }

    /// Takes bytes of the budget, or says why not.
    pub(crate) fn reserve(&self, owner: &str, bytes: u64) -> Result<(), DeviceError> {
        let mut used = lock(&self.bytes);
        let total = used.saturating_add(bytes);
        match self.options.memory_bytes_max {
            Some(most) if total > most => Err(DeviceError::new(
                DeviceErrorKind::OutOfMemory,
                format!("{owner} need {bytes} bytes beside {}, limit {most}", *used),
            )),
            _ => {
                *used = total;
                Ok(())
            }
        }
    }

    /// Gives bytes of the budget back.
    pub(crate) fn release(&self, bytes: u64) {
        let mut used = lock(&self.bytes);
        *used = used.saturating_sub(bytes);
    }

    /// The states of these slots as tensors `[rows, …]`.
    pub(crate) fn gather(&self, slots: &[u32]) -> Vec<Tensor> {
        let store = lock(&self.slots);
        let states = self.plan.states.iter().enumerate();
        let states = states.map(|(i, state)| {
            let rows = slots.iter().flat_map(|&slot| &store[slot as usize][i]);
            let shape = [&[slots.len()], state.shape.as_slice()].concat();
            Tensor::new(shape, rows.map(|&x| f64::from(x)).collect::<Vec<_>>())
        });
        states.collect()
    }

    /// Puts tensors `[rows, …]` back into these slots.
    pub(crate) fn scatter(&self, slots: &[u32], states: &[Tensor]) {
        let mut store = lock(&self.slots);
        for (i, state) in states.iter().enumerate() {
            let row = state.data.len() / slots.len().max(1);
            for (r, &slot) in slots.iter().enumerate() {
                let from = &state.data[r * row..(r + 1) * row];
                store[slot as usize][i] = from.iter().map(|&x| x as f32).collect();
            }
        }
    }

    /// Copies of a slot's states.
    ///
    /// # Panics
    /// If there is no such slot.
    pub(crate) fn export(&self, slot: u32) -> Vec<Vec<f32>> {
        lock(&self.slots)[self.checked(slot)].clone()
    }

    /// Sets a slot's states.
    ///
    /// # Panics
    /// If there is no such slot, or a buffer has not its state's length.
    pub(crate) fn import(&self, slot: u32, states: &[Vec<f32>]) {
        let slot = self.checked(slot);
        let mut store = lock(&self.slots);
        assert_eq!(
            states.len(),
            self.plan.states.len(),
            "the caller broke the contract: number of imported states"
        );
        for ((state, declared), into) in states.iter().zip(&self.plan.states).zip(&mut store[slot])
        {
            assert_eq!(
                state.len(),
                into.len(),
                "the caller broke the contract: elements of state `{}`",
                declared.name
            );
            into.clone_from(state);
        }
    }

    /// Zeros a slot's states.
    pub(crate) fn reset(&self, slot: u32) {
        let slot = self.checked(slot);
        lock(&self.slots)[slot].iter_mut().for_each(|state| state.fill(0.0));
    }

    fn checked(&self, slot: u32) -> usize {
        let slots = self.options.state_slots;
        assert!((slot as usize) < slots, "the caller broke the contract: slot {slot} of {slots}");
        slot as usize
    }
}

/// A lock whose holder panicked still guards whole data here: every write is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a program is between `submit` and `wait`.
#[derive(Debug)]
pub(crate) enum Flight<T> {
    /// Nothing was submitted, or what was submitted was waited for.
    Idle,
    /// A run that nobody has seen finish.
    Flying(T),
    /// A run that `poll` has reported finished.
    Landed(Result<(), DeviceError>),
}

impl<T> Flight<T> {
    /// Checks that nothing is in flight; gives the error that was not waited for.
    ///
    /// # Panics
    /// If a run is in flight.
    pub(crate) fn check_idle(&self, what: &str) -> Result<(), DeviceError> {
        match self {
            Flight::Flying(_) => {
                panic!("the caller broke the contract: {what} while a run is in flight")
            }
            Flight::Landed(Err(error)) => Err(error.clone()),
            Flight::Landed(Ok(())) | Flight::Idle => Ok(()),
        }
    }

    /// Leaves the idle state behind and gives what was there.
    pub(crate) fn take(&mut self) -> Flight<T> {
        std::mem::replace(self, Flight::Idle)
    }
}

/// A program's inputs as last written and its outputs as last computed.
#[derive(Debug)]
pub(crate) struct Buffers {
    inputs: Vec<Vec<f64>>,
    outputs: Vec<Vec<f32>>,
    rows: usize,
}

impl Buffers {
    pub(crate) fn new(info: &ProgramInfo) -> Buffers {
        let inputs = info.input_elements.iter().map(|&(all, _)| vec![0.0; all]).collect();
        Buffers { inputs, outputs: Vec::new(), rows: 0 }
    }

    /// Copies an input in.
    pub(crate) fn write(&mut self, info: &ProgramInfo, entry: &Entry, i: usize, data: Data<'_>) {
        let dtype = info.inputs.get(i).map_or(DType::F32, |input| entry.value(input.value).dtype);
        info.check_write(i, dtype, &data);
        match data {
            Data::F32(data) => {
                self.inputs[i].iter_mut().zip(data).for_each(|(x, &y)| *x = f64::from(y));
            }
            Data::I32(data) => {
                self.inputs[i].iter_mut().zip(data).for_each(|(x, &y)| *x = f64::from(y));
            }
        }
    }

    /// The first rows of every input, by name.
    pub(crate) fn inputs<'a>(&self, entry: &'a Entry, bucket: Bucket) -> Vec<(&'a str, Tensor)> {
        let inputs = entry.inputs.iter().zip(&self.inputs);
        let inputs = inputs.map(|(input, data)| {
            let shape = sizes(&entry.value(input.value).shape, bucket);
            let elements = shape.iter().product::<usize>();
            (input.name.as_str(), Tensor::new(shape, &data[..elements]))
        });
        inputs.collect()
    }

    /// Forgets the outputs of the last run, because another one begins.
    pub(crate) fn forget(&mut self) {
        self.rows = 0;
        self.outputs.clear();
    }

    /// Keeps the outputs of a run of `rows` rows.
    pub(crate) fn keep(&mut self, rows: usize, outputs: Vec<(String, Tensor)>) {
        self.rows = rows;
        self.outputs = outputs.iter().map(|(_, tensor)| tensor.to_f32()).collect();
    }

    /// Copies an output out.
    pub(crate) fn read(&self, info: &ProgramInfo, output: usize, into: &mut [f32]) {
        assert!(self.rows > 0, "the caller broke the contract: no run has succeeded");
        info.check_read(output, into.len(), self.rows);
        into.copy_from_slice(&self.outputs[output][..into.len()]);
    }
}
