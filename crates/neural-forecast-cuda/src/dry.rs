//! What a plan would launch on a GPU, without one: kernels, grids, shared memory.
//!
//! The same code that compiles programs, with addresses that nobody follows and weights of zeros.
//! For configurations that are printed and for tests; nothing runs.

use neural_forecast_runtime::DeviceError;
use neural_forecast_runtime::DeviceErrorKind;
use neural_forecast_runtime::MemoryWeights;
use neural_forecast_runtime::device::{LoadOptions, Request};
use neural_forecast_runtime::plan::{Plan, sizes};
use neural_forecast_runtime::prepare;

use crate::gpu::Gpu;
use crate::step::{Build, Packer, Places, has_kernel, load, value_elements};

/// How a kernel is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Its name in the counters: `{op}-{tier}-{dtype}`.
    pub kernel: String,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster; 1 without clusters.
    pub cluster: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

/// The launches of one entry of a plan on a GPU with these facts.
///
/// # Errors
/// As loading and compiling on a device, but for what only a device can report.
pub fn launches(
    plan: &Plan,
    request: Request,
    options: &LoadOptions,
    gpu: &Gpu,
) -> Result<Vec<LaunchShape>, DeviceError> {
    let (plan, _) = prepare(plan, options, &|op| has_kernel(op, gpu, options.precision))?;
    let mut zeros = MemoryWeights::new();
    for weight in &plan.weights {
        let elements = vec![0.0; weight.shape.iter().product()];
        // Of a weight that is stored in parts the first stands for all.
        let mut names = weight.parts.iter();
        zeros.insert(names.next().unwrap_or(&weight.name).clone(), &weight.shape, &elements);
        names.for_each(|name| zeros.insert(name.clone(), &[0], &[]));
    }
    let mut next = 256;
    let mut upload = |_: &str, bytes: &[u8]| {
        let address = next;
        next += bytes.len().next_multiple_of(256) as u64;
        Ok(address)
    };
    let mut packer = Packer::new(gpu, &plan, &zeros, options.precision, &mut upload);
    let entry = plan.entry(request.entry).ok_or_else(|| {
        let message = format!("the plan has no entry `{}`", request.entry.name());
        DeviceError::new(DeviceErrorKind::Compile, message)
    })?;
    let shapes = entry.values.iter().map(|value| sizes(&value.shape, request.bucket)).collect();
    let mut places = Places {
        // Aligned, and not 0, which kernels take for absent.
        values: vec![256; entry.values.len()],
        shapes,
        states: vec![256; plan.states.len()],
        new_states: vec![256; plan.states.len()],
        header: 256,
        ..Places::default()
    };
    let steps = entry.steps.iter().map(|step| load(step, &mut packer));
    let steps = steps.collect::<Result<Vec<_>, _>>()?;
    let (precision, class, bucket) = (options.precision, request.class, request.bucket);
    places.elements =
        value_elements(entry, &steps, &Build::new(gpu, precision, class, bucket, &places));
    let mut build = Build::new(gpu, precision, class, bucket, &places);
    for step in &steps {
        step.build(&mut build)?;
        build.end_step();
    }
    let (launches, _, _) = build.finish();
    Ok(launches
        .into_iter()
        .map(|launch| LaunchShape {
            kernel: launch.counter,
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            shared_bytes: launch.shared_bytes,
        })
        .collect())
}
