//! The kernels: their WGSL text, and the pipelines made of them.
//!
//! A kernel's text is the shared parts that it names and its own file. A pipeline is a kernel with
//! its `override` constants fixed; equal ones are made once a device.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::health::{Health, checked};

/// Bytes of a dispatch's parameters, and what their places are multiples of: the least alignment
/// of uniform offsets that WebGPU lets a device ask for at most.
pub(crate) const PARAMETER_BYTES: usize = 256;

/// A kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The file's stem.
    pub(crate) name: &'static str,
    /// Shared parts in front, and the file.
    parts: &'static [&'static str],
    /// 32-bit words of its parameters.
    pub(crate) words: usize,
    /// Whether it reads or writes the state store.
    pub(crate) stateful: bool,
}

const PRELUDE: &str = include_str!("../wgsl/prelude.wgsl");
const MATH: &str = include_str!("../wgsl/math.wgsl");
const REDUCE: &str = include_str!("../wgsl/reduce.wgsl");
const CELL: &str = include_str!("../wgsl/cell.wgsl");
const RECURRENCE: &str = include_str!("../wgsl/recurrence.wgsl");

macro_rules! kernels {
    ($(
        $constant:ident: $file:literal, [$($part:ident),*], $words:literal, $stateful:literal;
    )*) => {
        $(pub(crate) static $constant: Kernel = Kernel {
            name: $file,
            parts: &[PRELUDE, $($part,)* include_str!(concat!("../wgsl/", $file, ".wgsl"))],
            words: $words,
            stateful: $stateful,
        };)*

        /// All of them.
        #[cfg(test)]
        pub(crate) static ALL: &[&Kernel] = &[$(&$constant),*];
    };
}

kernels! {
    ATTENTION: "attention", [], 29, true;
    ATTENTION_PREPARE: "attention_prepare", [MATH], 15, true;
    ATTENTION_RING: "attention_ring", [], 15, true;
    BINARY: "binary", [MATH], 16, false;
    COMMIT: "commit", [], 7, true;
    DENORMALIZE: "denormalize", [MATH], 14, false;
    EMPIRICAL_QUANTILES: "empirical_quantiles", [MATH], 7, false;
    GATHER: "gather", [], 7, false;
    INTERPOLATE: "interpolate", [], 6, false;
    LAYOUT: "layout", [], 21, false;
    LINEAR: "linear", [MATH], 23, false;
    NORM: "norm", [REDUCE], 12, false;
    NORMALIZE: "normalize", [MATH, REDUCE], 18, true;
    PATCH: "patch", [], 9, false;
    POOL: "pool", [MATH], 7, false;
    RAMP: "ramp", [], 4, false;
    RNN_STACK: "rnn_stack", [MATH, CELL, RECURRENCE], 32, true;
    RNN_STEP: "rnn_step", [MATH, CELL, RECURRENCE], 32, true;
    SAMPLE: "sample", [MATH], 6, false;
    SOFTMAX: "softmax", [REDUCE], 4, false;
    UNARY: "unary", [MATH], 5, false;
    WEIGHTED_SUM: "weighted_sum", [REDUCE], 6, false;
}

impl Kernel {
    /// The whole text.
    pub(crate) fn text(&self) -> String {
        self.parts.join("\n")
    }
}

/// The values of a kernel's `override` constants; those that are not named have their defaults.
pub(crate) type Constants = Vec<(&'static str, u32)>;

/// The binding layouts of all kernels, and the pipelines made so far.
#[derive(Debug)]
pub(crate) struct Pipelines {
    /// Without and with the state store.
    layouts: [(wgpu::BindGroupLayout, wgpu::PipelineLayout); 2],
    modules: Mutex<BTreeMap<&'static str, wgpu::ShaderModule>>,
    made: Mutex<BTreeMap<(&'static str, Constants), Arc<wgpu::ComputePipeline>>>,
}

impl Pipelines {
    pub(crate) fn new(device: &wgpu::Device) -> Pipelines {
        let layout = |stateful: bool| {
            let mut entries = vec![
                entry(0, wgpu::BufferBindingType::Uniform),
                entry(1, wgpu::BufferBindingType::Storage { read_only: false }),
                entry(2, wgpu::BufferBindingType::Storage { read_only: true }),
                entry(3, wgpu::BufferBindingType::Storage { read_only: true }),
            ];
            if stateful {
                entries.push(entry(4, wgpu::BufferBindingType::Storage { read_only: false }));
            }
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            let bindings = device.create_bind_group_layout(&descriptor);
            let descriptor = wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&bindings)],
                immediate_size: 0,
            };
            let pipeline = device.create_pipeline_layout(&descriptor);
            (bindings, pipeline)
        };
        let layouts = [layout(false), layout(true)];
        Pipelines { layouts, modules: Mutex::default(), made: Mutex::default() }
    }

    /// The layout of the one bind group, without or with the state store.
    pub(crate) fn bindings(&self, stateful: bool) -> &wgpu::BindGroupLayout {
        &self.layouts[usize::from(stateful)].0
    }

    /// The pipeline of a kernel with these constants.
    ///
    /// # Errors
    /// `Compile` where the device's compiler refuses, `OutOfMemory`, `Lost`.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        health: &Health,
        (kernel, constants): (&'static Kernel, &Constants),
    ) -> Result<Arc<wgpu::ComputePipeline>, DeviceError> {
        // Held while a pipeline is made, so that no two threads make the same one.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kernel.name, constants.clone());
        if let Some(pipeline) = made.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let what = format!("kernel `{}` with {constants:?}", kernel.name);
        let place = (DeviceErrorKind::Compile, what.as_str());
        let pipeline = checked(device, health, place, || self.make(device, kernel, constants))?;
        let pipeline = Arc::new(pipeline);
        made.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    /// Every variant made so far.
    #[cfg(test)]
    pub(crate) fn variants(&self) -> Vec<(&'static str, Constants)> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn make(
        &self,
        device: &wgpu::Device,
        kernel: &'static Kernel,
        constants: &Constants,
    ) -> wgpu::ComputePipeline {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = modules.entry(kernel.name).or_insert_with(|| {
            device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name),
                source: wgpu::ShaderSource::Wgsl(kernel.text().into()),
            })
        });
        let constants: Vec<(&str, f64)> =
            constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&self.layouts[usize::from(kernel.stateful)].1),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // No kernel reads workgroup memory that it has not written.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        })
    }
}

fn entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    let parameters = ty == wgpu::BufferBindingType::Uniform;
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            // One bind group serves all dispatches, each with its own parameters.
            has_dynamic_offset: parameters,
            min_binding_size: parameters.then_some(PARAMETER_SIZE),
        },
        count: None,
    }
}

/// As wgpu wants it.
pub(crate) const PARAMETER_SIZE: std::num::NonZeroU64 =
    std::num::NonZeroU64::new(PARAMETER_BYTES as u64).expect("it is not zero");
