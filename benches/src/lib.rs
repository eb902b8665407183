//! What the benches share: one op as a plan of its own, checked against the reference, then timed
//! on the default device.
//!
//! Not a benchmark itself, and no list of ops: each file of `benches/` is named after one.
#![forbid(unsafe_code)]

mod summary;

/// Measured by the backend, because assembly lives there.
pub use neural_forecast_cpu::ceilings;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use neural_forecast::Error;
use neural_forecast::device::{self, DeviceChoice, DeviceOptions, OpenDevice};
use neural_forecast::models::seeded::{Init, SplitMix, draw};
use neural_forecast_runtime::device::{
    Data, KernelClass, LoadOptions, Precision, Program, Request, Run,
};
use neural_forecast_runtime::flops::flops;
use neural_forecast_runtime::plan::{
    Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder, ValueId, elements,
};
use neural_forecast_runtime::reference::{Tensor, run_entry, zero_states};
use neural_forecast_runtime::{MemoryWeights, PlanError};
use summary::{Row, Work};

/// Work up to which a case is compared with the reference before it is timed: a second or so of
/// naive sums.
const CHECKED_FLOPS_MAX: u64 = 500_000_000;

/// Largest `|d| / max(1, |ref|)` in single precision.
const TOLERANCE: f64 = 1e-5;

/// Samples of a case.
const SAMPLES: usize = 20;

/// How often the weight of a name is read in a run.
type Rereads = Box<dyn Fn(&str) -> u64>;

/// A plan of one or few ops with random weights, and a batch.
pub struct Case {
    /// What is varied, for the bench's id.
    pub name: String,
    plan: Plan,
    batch: usize,
    weights: MemoryWeights,
    rereads: Option<Rereads>,
}

impl Case {
    /// A case over inputs `[batch, …]` of these inner shapes; `build` adds the ops and gives the
    /// result.
    ///
    /// # Panics
    /// If the shapes do not fit: a bench is written wrongly.
    pub fn new(
        name: impl Into<String>,
        batch: usize,
        inputs: &[&[usize]],
        build: impl FnOnce(&mut PlanBuilder, &[ValueId]) -> Result<ValueId, PlanError>,
    ) -> Case {
        let mut b = PlanBuilder::new("bench", Context::Fixed(1));
        b.begin(EntryKind::Full);
        let ids: Vec<ValueId> = inputs
            .iter()
            .enumerate()
            .map(|(i, inner)| {
                let inner = inner.iter().map(|&n| Dim::Fixed(n));
                let shape: Vec<Dim> = [Dim::BATCH].into_iter().chain(inner).collect();
                b.input(format!("x{i}"), DType::F32, &shape)
            })
            .collect();
        let result = build(&mut b, &ids).unwrap_or_else(|error| panic!("case: {error}"));
        b.output("y", result, Vec::new());
        let plan = b.finish().unwrap_or_else(|error| panic!("case: {error}"));
        let bound = |name: &str| {
            let weight = plan.weights.iter().find(|weight| weight.name == name);
            weight.and_then(|weight| weight.shape.last()).map_or(1.0, |&n| 1.0 / (n as f32).sqrt())
        };
        let weights = draw(&plan, 1, |name| Init::Uniform(bound(name)));
        Case { name: name.into(), plan, batch, weights, rereads: None }
    }

    /// Says how often a run reads each weight, by name; once otherwise. Those that are read more
    /// than once, a layer at a time, are what a cache has to hold.
    #[must_use]
    pub fn rereads(mut self, times: impl Fn(&str) -> u64 + 'static) -> Case {
        self.rereads = Some(Box::new(times));
        self
    }

    fn bucket(&self) -> Bucket {
        Bucket { batch: self.batch, length: 1 }
    }

    fn inputs(&self) -> Vec<Vec<f32>> {
        let entry = &self.plan.entries[0];
        let mut random = SplitMix::new(7);
        let mut input = |value| {
            let n = elements(&entry.value(value).shape, self.bucket());
            (0..n).map(|_| random.normal()).collect()
        };
        entry.inputs.iter().map(|i| input(i.value)).collect()
    }

    /// Operations of a run.
    pub fn flops(&self) -> u64 {
        flops(&self.plan, &self.plan.entries[0], self.bucket())
    }

    /// Bytes that a run reads and writes at least: inputs, weights, outputs.
    pub fn bytes(&self) -> u64 {
        4 * self.plan.parameters() as u64 + self.bytes_of_values()
    }

    fn bytes_of_values(&self) -> u64 {
        let entry = &self.plan.entries[0];
        let ends =
            entry.inputs.iter().map(|i| i.value).chain(entry.outputs.iter().map(|o| o.value));
        let values = ends.map(|id| elements(&entry.value(id).shape, self.bucket())).sum::<usize>();
        4 * values as u64
    }

    /// What a run does at least, with weights of a precision.
    fn work(&self, precision: Precision) -> Work {
        let (mut bytes, mut once) = (self.bytes_of_values(), 0);
        // By what a name begins with, so that a layer's directions count together.
        let mut layers: BTreeMap<&str, u64> = BTreeMap::new();
        for weight in &self.plan.weights {
            let size = weight.shape.iter().product::<usize>() as u64 * width(precision);
            let times = self.rereads.as_ref().map_or(1, |times| times(&weight.name));
            bytes += times * size;
            once += size;
            if times > 1 {
                let layer = weight.name.rsplit_once('.').map_or("", |(layer, _)| layer);
                *layers.entry(layer).or_default() += size;
            }
        }
        let footprint = layers.into_values().max().unwrap_or(once + self.bytes_of_values());
        Work { flops: self.flops(), bytes, footprint }
    }

    /// Compares a run with the reference, where that takes little time.
    fn check(&self, program: &mut dyn Program, inputs: &[Vec<f32>]) {
        if self.flops() > CHECKED_FLOPS_MAX {
            return;
        }
        let entry = &self.plan.entries[0];
        let named: Vec<(&str, Tensor)> = entry
            .inputs
            .iter()
            .zip(inputs)
            .map(|(input, data)| {
                let shape = neural_forecast_runtime::plan::sizes(
                    &entry.value(input.value).shape,
                    self.bucket(),
                );
                (input.name.as_str(), Tensor::from_f32(shape, data))
            })
            .collect();
        let mut states = zero_states(&self.plan, self.batch);
        let expected = run_entry(
            &self.plan,
            EntryKind::Full,
            self.bucket(),
            &self.weights,
            &named,
            &mut states,
        )
        .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut found = vec![0.0; program.info().output_elements[0].0];
        call(program, self.batch, inputs, &mut found);
        for (y, reference) in found.iter().zip(&expected[0].1.data) {
            let error = (f64::from(*y) - reference).abs() / reference.abs().max(1.0);
            assert!(error <= TOLERANCE, "{}: {y}, reference {reference}", self.name);
        }
    }
}

/// Bytes of a stored weight.
fn width(precision: Precision) -> u64 {
    match precision {
        Precision::F32 | Precision::Tf32 => 4,
        Precision::F16 | Precision::Bf16 => 2,
        Precision::Int8 | Precision::Fp8 => 1,
    }
}

/// A group of benches on one device.
pub struct Bench<'c> {
    op: String,
    group: BenchmarkGroup<'c, WallTime>,
    device: OpenDevice,
    precisions: Vec<Precision>,
    rows: Vec<Row>,
}

impl<'c> Bench<'c> {
    /// A group named after its op.
    ///
    /// # Panics
    /// If the device cannot be opened: there is nothing to time then.
    pub fn new(criterion: &'c mut Criterion, op: &str) -> Self {
        let device = device::open(DeviceChoice::Auto, &DeviceOptions::default())
            .unwrap_or_else(|error: Error| panic!("{error}"));
        let mut group = criterion.benchmark_group(op);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        group.sample_size(SAMPLES);
        let (op, precisions, rows) = (op.to_owned(), vec![Precision::F32], Vec::new());
        Bench { op, group, device, precisions, rows }
    }

    /// Also in these precisions.
    #[must_use]
    pub fn precisions(mut self, precisions: &[Precision]) -> Self {
        self.precisions = precisions.to_vec();
        self
    }

    /// Times a case; its throughput is floating-point operations.
    pub fn flops(&mut self, case: &Case) {
        self.run(case, Throughput::Elements(case.flops()));
    }

    /// Times a case; its throughput is bytes.
    pub fn bytes(&mut self, case: &Case) {
        self.run(case, Throughput::Bytes(case.bytes()));
    }

    fn run(&mut self, case: &Case, throughput: Throughput) {
        self.group.throughput(throughput);
        for &precision in &self.precisions {
            let capabilities = self.device.device.capabilities();
            if !capabilities.precisions.contains(&precision) {
                println!("skipped: {} in {} on {}", case.name, precision.name(), capabilities.id);
                continue;
            }
            let mut program = self.compile(case, precision);
            let inputs = case.inputs();
            if precision == Precision::F32 {
                case.check(program.as_mut(), &inputs);
            }
            let mut output = vec![0.0; program.info().output_elements[0].0];
            let id = BenchmarkId::new(precision.name(), &case.name);
            // Criterion's own samples, kept for the summary: the last ones are the measured ones,
            // what comes before them is warming up.
            let mut samples = Vec::new();
            self.group.bench_function(id, |b| {
                b.iter_custom(|calls| {
                    let start = Instant::now();
                    for _ in 0..calls {
                        call(program.as_mut(), case.batch, &inputs, &mut output);
                    }
                    let elapsed = start.elapsed();
                    samples.push(elapsed.as_secs_f64() / calls as f64);
                    elapsed
                });
            });
            if samples.len() > SAMPLES {
                let measured = samples.len() - SAMPLES..;
                samples[measured.clone()].sort_by(f64::total_cmp);
                let seconds = samples[measured][SAMPLES / 2];
                let work = case.work(precision);
                self.rows.push(Row { case: case.name.clone(), precision, seconds, work });
            }
        }
    }

    /// Ends the group and prints its summary beside the machine's ceilings.
    pub fn finish(self) {
        self.group.finish();
        summary::print(&self.op, self.device.device.capabilities(), &self.rows);
    }

    fn compile(&self, case: &Case, precision: Precision) -> Box<dyn Program> {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let class = KernelClass::Latency;
        let request = Request { entry: EntryKind::Full, bucket: case.bucket(), class };
        let load = self.device.device.load(&case.plan, &case.weights, &options);
        load.and_then(|mut resident| resident.compile(request))
            .unwrap_or_else(|error| panic!("{}: {error}", case.name))
    }
}

/// One write, run and read.
fn call(program: &mut dyn Program, rows: usize, inputs: &[Vec<f32>], output: &mut [f32]) {
    for (i, input) in inputs.iter().enumerate() {
        program.write(i, Data::F32(input));
    }
    let run = program.submit(&Run { rows, slots: &[], cancel: None });
    run.and_then(|()| program.wait())
        .and_then(|()| program.read(0, output))
        .unwrap_or_else(|error| panic!("{error}"));
}
