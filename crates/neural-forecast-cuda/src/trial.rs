//! What unit tests need: a GPU where there is one, and programs of launches of their own choice.

use neural_forecast_runtime::device::{
    Capabilities, Data, Device, KernelClass, KernelCount, LoadOptions, Precision, Program, Request,
    Resident, Run, Support, WeightSource,
};
use neural_forecast_runtime::ops::{Op, Reshape};
use neural_forecast_runtime::plan::{
    Bucket, Context, DType, Dim, EntryKind, Plan, PlanBuilder, ValueId,
};
use neural_forecast_runtime::testing::device_or_skip;
use neural_forecast_runtime::{DeviceError, MemoryWeights};

use crate::device::{CudaDevice, CudaOptions};
use crate::resident::CudaResident;
use crate::step::whole::{HostPages, Whole};
use crate::step::{Build, Loaded};
use crate::surround::{self, Announcement, Region};

/// The first GPU, unless there is none and nobody insists.
pub(crate) fn device(options: CudaOptions) -> Option<CudaDevice> {
    device_or_skip("cuda", CudaDevice::open(0, options))
}

/// `y = x`, `[B, width]`.
pub(crate) fn plan(width: usize) -> (Plan, ValueId) {
    let mut plan = PlanBuilder::new("trial", Context::Fixed(1));
    plan.begin(EntryKind::Full);
    let x = plan.input("x", DType::F32, &[Dim::BATCH, width.into()]);
    let y = plan.step(Reshape { x, shape: vec![Dim::BATCH, width.into()] }).expect("it is legal");
    plan.output("y", y[0], Vec::new());
    (plan.finish().expect("it is complete"), x)
}

/// A step that copies a value to scratch and back, so many times.
#[derive(Debug)]
pub(crate) struct Copies {
    pub(crate) value: ValueId,
    pub(crate) launches: usize,
}

impl Loaded for Copies {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        let bytes = build.shape(self.value).iter().product::<usize>() * 4;
        let mut places = (build.value(self.value), build.scratch(bytes));
        for _ in 0..self.launches {
            let region = Region::new(places.0, places.1, bytes);
            let launches = surround::begin(&[region]).into_iter();
            launches.for_each(|launch| build.launch(launch.programmatic()));
            places = (places.1, places.0);
        }
        Ok(())
    }
}

/// A whole-forecast kernel that copies the input to the output.
#[derive(Debug)]
pub(crate) struct CopyWhole {
    pub(crate) bytes: usize,
}

impl Whole for CopyWhole {
    fn build(&self, build: &mut Build<'_>, pages: &HostPages) -> Result<bool, DeviceError> {
        let counter = build.persistent(4);
        let region = Region::new(pages.inputs[0], pages.outputs[0], self.bytes);
        let announcement = Announcement { flag: pages.flag, counter };
        let launches = surround::finish(pages.header, &[], &[region], 1, Some(announcement));
        launches.into_iter().for_each(|launch| build.launch(launch));
        Ok(true)
    }
}

/// A program of these launches instead of the plan's.
pub(crate) fn program(
    device: &CudaDevice,
    width: usize,
    request: Request,
    steps: impl FnOnce(ValueId) -> Vec<Box<dyn Loaded>>,
    whole: Vec<Box<dyn Whole>>,
) -> (CudaResident, Box<dyn Program>) {
    let (plan, x) = plan(width);
    let options = LoadOptions::default();
    let mut resident = CudaResident::load(device.shared(), &plan, &MemoryWeights::new(), &options)
        .expect("it loads");
    *resident.first_steps() = steps(x);
    *resident.first_whole() = whole;
    let program = resident.compile(request).expect("it compiles");
    (resident, program)
}

pub(crate) fn request(batch: usize, class: KernelClass) -> Request {
    Request { entry: EntryKind::Full, bucket: Bucket { batch, length: 1 }, class }
}

/// Writes, runs and reads.
pub(crate) fn run(
    program: &mut dyn Program,
    x: &[f32],
    rows: usize,
) -> Result<Vec<f32>, DeviceError> {
    program.write(0, Data::F32(x));
    program.submit(&Run { rows, ..Run::default() })?;
    program.wait()?;
    let mut y = vec![0.0; x.len()];
    program.read(0, &mut y)?;
    Ok(y)
}

/// How often a kernel was launched.
pub(crate) fn counted(device: &CudaDevice, kernel: &str) -> u64 {
    let counts = device.kernel_counts();
    counts.iter().find(|count| count.kernel == kernel).map_or(0, |count| count.launches)
}

/// A step that launches nothing but what makes its program cooperative.
#[derive(Debug)]
struct Together;

impl Loaded for Together {
    fn build(&self, build: &mut Build<'_>) -> Result<(), DeviceError> {
        build.launch(surround::probe(1, 0).cooperative());
        Ok(())
    }
}

/// A device whose programs are all cooperative.
#[derive(Debug)]
pub(crate) struct CooperativeDevice(pub(crate) CudaDevice);

impl Device for CooperativeDevice {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    fn support(&self, op: &Op, precision: Precision) -> Support {
        self.0.support(op, precision)
    }

    fn load(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Resident>, DeviceError> {
        let mut resident = CudaResident::load(self.0.shared(), plan, weights, options)?;
        resident.first_steps().push(Box::new(Together));
        Ok(Box::new(resident))
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        self.0.kernel_counts()
    }
}
