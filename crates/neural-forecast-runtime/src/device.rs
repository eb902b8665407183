//! The device contract: what a backend must do, and what it may rely on.
//!
//! Three traits, from long-lived to short-lived. A [`Device`] is an opened piece of hardware. A
//! [`Resident`] is a plan with its weights on that device, packed for one precision. A [`Program`]
//! is one entry of that plan, compiled for one [`Bucket`]: a captured CUDA graph, one pre-recorded
//! WebGPU pass, a CPU step list.
//!
//! # Who validates
//! Everything that can be checked without the device is checked before it: shapes by the plan's
//! shape rules, weights by [`check_weights`], input lengths by [`Program::write`]'s caller. A
//! backend's sole obligation is the op's mathematics as the reference implementations define it,
//! and to report what nobody could foresee: memory, a lost device, a compiler's refusal. A breach
//! of the contract (a slice of the wrong length, a slot out of range) panics with a message that
//! says whose bug it is; a backend must not turn it into an error, nor into undefined behaviour.
//!
//! # What is asynchronous
//! [`Program::write`] copies before it returns. [`Program::submit`] may return before anything ran.
//! [`Program::wait`] returns when the run has finished; [`Program::poll`] never blocks. Outputs may
//! be read after `wait` has returned `Ok` and until the next `submit`. One run of a program is in
//! flight at a time; several programs of a device may be in flight together, and the device's own
//! queues order them. A browser cannot block, so a caller that must run there uses `poll` alone.
//!
//! # When errors appear
//! An error of a run is returned by `wait` of that run. The first error wins and is kept: until
//! [`Program::wait`] has reported it, `submit` returns the same error. After
//! [`DeviceErrorKind::Lost`] every call on everything that came from
//! the device returns `Lost`.
//!
//! # Memory
//! A buffer is (arena, offset), never an address: WebGPU has none. Values live in one arena a
//! program, sized by [`crate::arena::ArenaPlan`] with one named line per owner, allocated when the
//! program is compiled and sealed: a run allocates nothing. Offsets are multiples of
//! [`crate::arena::ALIGNMENT`] (256 bytes). On WebGPU the whole arena is bound read-write, because
//! one buffer may not be bound both ways in one dispatch; weights are separate and read-only. An op
//! binds at most [`Capabilities::bindings_max`] buffers of at most
//! [`Capabilities::binding_bytes_max`] each. [`check_limits`] says which steps of a plan exceed
//! them.
//!
//! # States
//! A plan's states live on the device in a store of slots, one slot a sequence. A run names the
//! slot of each of its rows in [`Run::slots`]; kernels read that vector on the device, so a
//! captured graph never changes when sequences come and go. A cancelled or failed run leaves the
//! slots as they were: kernels write the new state into the arena and the last step commits it.
//!
//! # Residency, yielding, cancelling
//! Workgroups have no progress guarantee towards each other. A kernel whose blocks wait for one
//! another must be launched cooperatively and its program declares [`Residency::Exclusive`]: two
//! such programs half-resident at once deadlock, so the multiplexer runs them one at a time (per
//! share of the device). A program reaches a yield point at least every [`YIELD_US_MAX`] µs, or
//! declares the share of the device that it leaves free. At a yield point it observes cancellation
//! and lets work of higher priority in.
//!
//! # Threads
//! All three traits are `Send`. A backend whose native objects belong to one thread (a CUDA graph
//! has one executor thread a device) keeps them there and hands out handles.
//!
//! # Determinism
//! The bits of a row depend on the input, the device, the precision and the [`KernelClass`], never
//! on the bucket, the other rows or the padding. The class is chosen when a program is compiled.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arena::{ArenaPlan, MemoryLine};
use crate::error::{DeviceError, DeviceErrorKind};
use crate::flops::flops;
use crate::ops::Op;
use crate::plan::{Bucket, DType, Dim, Entry, EntryKind, Input, Output, Plan, elements};

/// A program reaches a yield point at least this often, in microseconds.
pub const YIELD_US_MAX: u64 = 200;

/// In which number format weights are kept and products are formed. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// IEEE single precision throughout.
    F32,
    /// Products in TF32.
    Tf32,
    /// Weights and products in half precision.
    F16,
    /// Weights and products in bfloat16.
    Bf16,
    /// Weights in 8-bit integers with a scale per output.
    Int8,
    /// Weights in 8-bit floats with a scale per output.
    Fp8,
}

impl Precision {
    /// All of them, widest first.
    pub const ALL: [Precision; 6] = [
        Precision::F32,
        Precision::Tf32,
        Precision::F16,
        Precision::Bf16,
        Precision::Int8,
        Precision::Fp8,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Fp8 => "fp8",
        }
    }

    /// Bytes a weight takes.
    pub fn weight_bytes(self) -> usize {
        match self {
            Precision::F32 | Precision::Tf32 => 4,
            Precision::F16 | Precision::Bf16 => 2,
            Precision::Int8 | Precision::Fp8 => 1,
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Precision::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            format!("unknown precision `{name}`, expected one of f32, tf32, f16, bf16, int8, fp8")
        })
    }
}

/// Which kernels a program uses. Within a class the order in which a product sums over its inner
/// dimension is fixed for every batch size; between classes bits may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KernelClass {
    /// For one series as soon as possible; a streaming tick has these bits.
    Latency,
    /// For many series in little time.
    Throughput,
}

impl KernelClass {
    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            KernelClass::Latency => "latency",
            KernelClass::Throughput => "throughput",
        }
    }
}

/// What kind of processor a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// This host's processor.
    Cpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// A GPU through WebGPU.
    Gpu,
    /// The reference implementations, or a device that only records.
    Test,
}

/// What a device can do, read once when it opens. Holding it is the licence to launch the kernels
/// that it makes eligible.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Kind.
    pub kind: DeviceKind,
    /// Name, for example `cpu` or `cuda:0`.
    pub id: String,
    /// The maker's name of the device.
    pub name: String,
    /// Precisions it computes in.
    pub precisions: Vec<Precision>,
    /// Memory for weights, arenas and states, in bytes.
    pub memory_bytes: u64,
    /// Most buffers an op may bind.
    pub bindings_max: usize,
    /// Most bytes of one binding.
    pub binding_bytes_max: u64,
    /// Whether host and device share memory, so that a staging copy is needless.
    pub unified_memory: bool,
    /// Whether a grid can wait for itself (cooperative launch).
    pub cooperative: bool,
    /// Most floating-point operations a second at a precision (a multiply-add is two, without
    /// sparsity), where that is known; what a share of the peak is measured against.
    pub peak_flops: Vec<(Precision, f64)>,
    /// Further facts for people: instruction tiers, limits, versions.
    pub features: Vec<(String, String)>,
}

impl Capabilities {
    /// Most floating-point operations a second at a precision, where that is known.
    pub fn peak(&self, precision: Precision) -> Option<f64> {
        self.peak_flops.iter().find(|(known, _)| *known == precision).map(|(_, peak)| *peak)
    }
}

/// Whether a device runs an op itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// With a kernel of its own.
    Native,
    /// By the shared lowering into smaller ops, each native.
    Lowered,
    /// Not at all, with the reason.
    Unsupported(String),
}

/// The element type of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE double.
    F64,
}

/// A stored weight: row-major little-endian elements, not necessarily aligned.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// Element type in storage.
    pub dtype: WeightType,
    /// Shape.
    pub shape: &'a [usize],
    /// Elements.
    pub bytes: &'a [u8],
}

impl WeightView<'_> {
    /// The elements as f32, rounded to nearest from f64.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            WeightType::F32 => self.elements(|b: [u8; 4]| f32::from_le_bytes(b)),
            WeightType::F16 => self.elements(|b: [u8; 2]| half::f16::from_le_bytes(b).to_f32()),
            WeightType::Bf16 => self.elements(|b: [u8; 2]| half::bf16::from_le_bytes(b).to_f32()),
            WeightType::F64 => self.elements(|b: [u8; 8]| f64::from_le_bytes(b) as f32),
        }
    }

    fn elements<const N: usize>(&self, read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        self.bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
    }
}

/// Where a plan's weights come from: a mapped file, or tensors made in memory. Read while a plan is
/// loaded and not after.
pub trait WeightSource {
    /// The weight of this name.
    fn weight(&self, name: &str) -> Option<WeightView<'_>>;
}

/// A plan's weight as f32 in declared order, its parts concatenated along the first axis.
pub fn weight_f32(
    plan: &Plan,
    weight: crate::plan::WeightId,
    source: &dyn WeightSource,
) -> Result<Vec<f32>, DeviceError> {
    let declared = plan.weight(weight);
    let missing = |name: &str| {
        DeviceError::new(DeviceErrorKind::Weights, format!("tensor `{name}` is missing"))
    };
    let names = match declared.parts.as_slice() {
        [] => std::slice::from_ref(&declared.name),
        parts => parts,
    };
    let mut elements = Vec::with_capacity(declared.shape.iter().product());
    for name in names {
        elements.extend(source.weight(name).ok_or_else(|| missing(name))?.to_f32());
    }
    if elements.len() == declared.shape.iter().product::<usize>() {
        return Ok(elements);
    }
    Err(DeviceError::new(
        DeviceErrorKind::Weights,
        format!(
            "tensor `{}` has {} elements, expected shape {:?}",
            declared.name,
            elements.len(),
            declared.shape
        ),
    ))
}

/// Checks that a source holds every weight of a plan, in the declared shape.
pub fn check_weights(plan: &Plan, source: &dyn WeightSource) -> Result<(), DeviceError> {
    let wrong = |message| Err(DeviceError::new(DeviceErrorKind::Weights, message));
    for weight in &plan.weights {
        if !weight.parts.is_empty() {
            continue;
        }
        match source.weight(&weight.name) {
            None => {
                let (name, shape) = (&weight.name, &weight.shape);
                return wrong(format!("tensor `{name}` of shape {shape:?} is missing"));
            }
            Some(view) if view.shape != weight.shape => {
                return wrong(format!(
                    "tensor `{}` has shape {:?}, expected {:?}",
                    weight.name, view.shape, weight.shape
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// How a plan is made resident.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Number format of weights and products.
    pub precision: Precision,
    /// Whether the fusion pass runs. Off, every op is its own kernel, to measure the gain.
    pub fuse: bool,
    /// Whether stack ops are lowered even where the device has a fused kernel.
    pub lower: bool,
    /// Slots of the state store.
    pub state_slots: usize,
    /// Most bytes that weights, states and programs may take; compiling beyond it is
    /// [`DeviceErrorKind::OutOfMemory`].
    pub memory_bytes_max: Option<u64>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            precision: Precision::F32,
            fuse: true,
            lower: false,
            state_slots: 0,
            memory_bytes_max: None,
        }
    }
}

/// What a program is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// Which entry of the plan.
    pub entry: EntryKind,
    /// Batch and context length.
    pub bucket: Bucket,
    /// Which kernels.
    pub class: KernelClass,
}

/// How much of a device a program holds while it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Residency {
    /// Other programs may run beside it.
    Shared,
    /// Its blocks wait for one another: nothing else that does may be resident on the same
    /// `units` (streaming multiprocessors) of the device.
    Exclusive {
        /// How many.
        units: u32,
    },
}

/// What a program is.
#[derive(Clone, Debug)]
pub struct ProgramInfo {
    /// What it was compiled for.
    pub request: Request,
    /// In which precision.
    pub precision: Precision,
    /// Inputs, in the order of [`Program::write`]'s index.
    pub inputs: Vec<Input>,
    /// Elements of each input at a full bucket, and the elements of one batch row (0 where the
    /// input has no batch axis).
    pub input_elements: Vec<(usize, usize)>,
    /// Outputs, in the order of [`Program::read`]'s index.
    pub outputs: Vec<Output>,
    /// Elements of each output, as for inputs.
    pub output_elements: Vec<(usize, usize)>,
    /// Number of device steps after fusion and lowering.
    pub steps: usize,
    /// Memory of this program: one named line per owner.
    pub memory: Vec<MemoryLine>,
    /// How it holds the device.
    pub residency: Residency,
    /// Floating-point operations of a full-bucket run (a multiply-add is two), as executed.
    pub flops: u64,
}

impl ProgramInfo {
    /// What can be said of an entry in a bucket before a device has compiled it: its inputs and
    /// outputs, its steps, the lines of its arena, and its operations. Not resident exclusively.
    pub fn new(plan: &Plan, entry: &Entry, request: Request, precision: Precision) -> Self {
        let count = |value| element_count(&entry.value(value).shape, request.bucket);
        ProgramInfo {
            request,
            precision,
            inputs: entry.inputs.clone(),
            input_elements: entry.inputs.iter().map(|input| count(input.value)).collect(),
            outputs: entry.outputs.clone(),
            output_elements: entry.outputs.iter().map(|output| count(output.value)).collect(),
            steps: entry.steps.len(),
            memory: ArenaPlan::new(entry, request.bucket).lines().to_vec(),
            residency: Residency::Shared,
            flops: flops(plan, entry, request.bucket),
        }
    }
}

/// The panics of the contract, with one wording for all devices.
impl ProgramInfo {
    /// Checks what is handed to [`Program::write`].
    ///
    /// # Panics
    /// If there is no such input, or the data has another type than `dtype` or a wrong length.
    pub fn check_write(&self, input: usize, dtype: DType, data: &Data<'_>) {
        let Some((declared, &(all, row))) =
            self.inputs.get(input).zip(self.input_elements.get(input))
        else {
            panic!("the caller broke the contract: input {input} of {}", self.inputs.len());
        };
        let name = &declared.name;
        let typed =
            matches!((dtype, data), (DType::F32, Data::F32(_)) | (DType::I32, Data::I32(_)));
        assert!(typed, "the caller broke the contract: input `{name}` is {dtype:?}");
        check_rows("input", name, data.len(), (all, row));
    }

    /// Checks what is handed to [`Program::read`] after a run of `rows` rows.
    ///
    /// # Panics
    /// If there is no such output, or the buffer is no whole number of rows, or longer than what
    /// ran.
    pub fn check_read(&self, output: usize, length: usize, rows: usize) {
        let Some((declared, &(all, row))) =
            self.outputs.get(output).zip(self.output_elements.get(output))
        else {
            panic!("the caller broke the contract: output {output} of {}", self.outputs.len());
        };
        let ran = if row == 0 { all } else { row * rows };
        check_rows("output", &declared.name, length, (ran, row));
    }

    /// Checks what is handed to [`Program::submit`]. `slots` is the size of the state store, `None`
    /// for an entry without states.
    ///
    /// # Panics
    /// If rows or slots are not what the bucket and the store allow.
    pub fn check_run(&self, run: &Run<'_>, slots: Option<usize>) {
        let (rows, batch) = (run.rows, self.request.bucket.batch);
        assert!(
            (1..=batch).contains(&rows),
            "the caller broke the contract: {rows} rows in a bucket of {batch}"
        );
        let Some(slots) = slots else { return };
        assert!(
            run.slots.len() == rows,
            "the caller broke the contract: {} slots for {rows} rows",
            run.slots.len()
        );
        for (i, &slot) in run.slots.iter().enumerate() {
            assert!(
                (slot as usize) < slots,
                "the caller broke the contract: slot {slot} of {slots}"
            );
            assert!(
                !run.slots[..i].contains(&slot),
                "the caller broke the contract: two rows share slot {slot}"
            );
        }
    }
}

fn check_rows(what: &str, name: &str, found: usize, (most, row): (usize, usize)) {
    let whole = if row == 0 { found == most } else { found.is_multiple_of(row) && found <= most };
    assert!(
        whole,
        "the caller broke the contract: {what} `{name}` takes rows of {row} elements, {most} at \
         most, found {found}"
    );
}

/// Elements of a value at a full bucket, and the elements of one batch row of it (0 where its first
/// axis is not the batch).
pub fn element_count(shape: &[Dim], bucket: Bucket) -> (usize, usize) {
    let row = match shape.first() {
        Some(Dim::Batch(_)) => elements(shape, Bucket { batch: 1, ..bucket }),
        _ => 0,
    };
    (elements(shape, bucket), row)
}

/// Elements of one input.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Integers.
    I32(&'a [i32]),
}

impl Data<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(data) => data.len(),
            Data::I32(data) => data.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One run of a program.
#[derive(Clone, Debug, Default)]
pub struct Run<'a> {
    /// Rows in use, from 1 to the bucket's batch; the others are not computed or not read.
    pub rows: usize,
    /// The state slot of each row, for entries with states; else empty.
    pub slots: &'a [u32],
    /// Asks the run to stop at its next yield point.
    pub cancel: Option<Cancel>,
}

/// A flag by which a run is asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Cancel::default()
    }

    /// Raises it.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is raised.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A kernel's name and how often it served since its device opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelCount {
    /// `{op}-{tier}-{dtype}`.
    pub kernel: String,
    /// Launches.
    pub launches: u64,
    /// Runs that it served without a launch, because it had stayed on the device.
    pub lingering: u64,
}

/// An opened device.
pub trait Device: Send + Sync + fmt::Debug {
    /// What it can do.
    fn capabilities(&self) -> &Capabilities;

    /// Whether it runs an op at a precision.
    fn support(&self, op: &Op, precision: Precision) -> Support;

    /// Makes a plan resident: checks ([`check_weights`]), fuses, lowers, packs and uploads. The
    /// source is not read after this returns.
    ///
    /// # Errors
    /// `Weights`, `OutOfMemory`, `Unsupported` (a precision, or an op with no lowering), `Lost`.
    fn load(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Resident>, DeviceError>;

    /// How often each kernel was launched.
    fn kernel_counts(&self) -> Vec<KernelCount>;

    /// Energy that the device has taken since some fixed moment, in joules, where it counts it.
    /// Everybody's on a shared device.
    fn energy_joules(&self) -> Option<f64> {
        None
    }
}

/// A plan with its weights on a device.
pub trait Resident: Send + fmt::Debug {
    /// Memory of weights and states: one named line per owner.
    fn memory(&self) -> Vec<MemoryLine>;

    /// Compiles an entry for a bucket; allocates its arena and seals it.
    ///
    /// # Errors
    /// `OutOfMemory`, `Compile`, `Unsupported`, `Lost`.
    ///
    /// # Panics
    /// If the plan has no such entry.
    fn compile(&mut self, request: Request) -> Result<Box<dyn Program>, DeviceError>;

    /// Copies a slot's states out, one buffer per state of the plan.
    fn export_state(&self, slot: u32) -> Result<Vec<Vec<f32>>, DeviceError>;

    /// Sets a slot's states from an export of the same plan.
    ///
    /// # Panics
    /// If a buffer has not its state's length; the caller compares with the plan first.
    fn import_state(&mut self, slot: u32, states: &[Vec<f32>]) -> Result<(), DeviceError>;

    /// Sets a slot's states to zero.
    fn reset_state(&mut self, slot: u32) -> Result<(), DeviceError>;
}

/// One entry compiled for one bucket. Not shared between threads: a pool of programs serves
/// several callers.
pub trait Program: Send + fmt::Debug {
    /// What it is.
    fn info(&self) -> &ProgramInfo;

    /// Copies the rows of an input, which stays written for every run until the next write. `data`
    /// holds as many batch rows as the run will have (all of
    /// the input where it has no batch axis).
    ///
    /// # Panics
    /// If `data` has another type than the input, or is not a whole number of rows, or is longer
    /// than the bucket, or if a run is in flight.
    fn write(&mut self, input: usize, data: Data<'_>);

    /// Starts a run of the rows written.
    ///
    /// # Errors
    /// The first error of an earlier run that was not waited for; `Lost`.
    ///
    /// # Panics
    /// If a run is in flight, `rows` is 0 or over the bucket's batch, or `slots` has not one valid
    /// slot a row where the entry uses states, or two rows share a slot.
    fn submit(&mut self, run: &Run<'_>) -> Result<(), DeviceError>;

    /// Whether the run in flight has finished. True when none is.
    fn poll(&mut self) -> bool;

    /// Waits for the run in flight.
    ///
    /// # Errors
    /// What went wrong in the run; `Cancelled`.
    fn wait(&mut self) -> Result<(), DeviceError>;

    /// Has the device's own clock read in every run from now on, where there is one. Reading it
    /// may cost a run some time, so that it need not be read before.
    ///
    /// # Errors
    /// `OutOfMemory`, `Lost`.
    ///
    /// # Panics
    /// If a run is in flight.
    fn time_runs(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Time between the first and the last kernel of the last run by the device's own clock, in
    /// microseconds; `None` where there is no such clock, it was not read, or nothing has run.
    fn device_us(&self) -> Option<f64> {
        None
    }

    /// Copies an output's rows of the last run; `into` holds a whole number of rows.
    ///
    /// # Panics
    /// If a run is in flight, or `into` is longer than the rows that ran.
    fn read(&mut self, output: usize, into: &mut [f32]) -> Result<(), DeviceError>;
}

/// Which of a plan's steps exceed a device's binding limits in a bucket: label and reason.
///
/// Values are bound as one arena where that fits into a binding, else each on its own. Weights of a
/// step are bound each on its own, or packed into one buffer, whichever the limits allow. States
/// are a binding each, the slot vector is one more.
pub fn check_limits(
    plan: &Plan,
    entry: &Entry,
    bucket: Bucket,
    capabilities: &Capabilities,
) -> Vec<(String, String)> {
    let most = capabilities.binding_bytes_max;
    let arena = ArenaPlan::new(entry, bucket).bytes() as u64;
    let mut exceeded = Vec::new();
    for step in &entry.steps {
        let mut values = step.op.reads();
        values.extend(&step.outputs);
        values.sort_unstable();
        values.dedup();
        let value_bytes = |id| elements(&entry.value(id).shape, bucket) as u64 * 4;
        let largest = values.iter().map(|&id| value_bytes(id)).max().unwrap_or(0);
        let values = if arena <= most { 1 } else { values.len() };

        let mut weights = step.op.weights();
        weights.sort_unstable();
        weights.dedup();
        let weight_bytes = |&id| plan.weight(id).shape.iter().product::<usize>() as u64 * 4;
        let largest = largest.max(weights.iter().map(weight_bytes).max().unwrap_or(0));
        let packed: u64 = weights.iter().map(weight_bytes).sum();
        let weights = if packed <= most { weights.len().min(1) } else { weights.len() };

        let states = step.op.states().len();
        let bindings = values + weights + states + usize::from(states > 0);
        if bindings > capabilities.bindings_max {
            let most = capabilities.bindings_max;
            exceeded.push((step.label.clone(), format!("binds {bindings} buffers of {most}")));
        }
        if largest > most {
            exceeded.push((step.label.clone(), format!("binds {largest} bytes of {most}")));
        }
    }
    exceeded
}
