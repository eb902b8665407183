//! The kernels: their WGSL text, and the pipelines made of them.
//!
//! A kernel's text is the shared parts that it names and its own file, with repeated lines written
//! out (`text.rs`). A pipeline is a kernel with its `override` constants fixed; equal ones are made
//! once a device.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use neural_forecast_runtime::{DeviceError, DeviceErrorKind};

use crate::health::{Health, checked};
use crate::text;

/// Bytes of a dispatch's parameters, and what their places are multiples of: the least alignment
/// of uniform offsets that WebGPU lets a device ask for at most.
pub(crate) const PARAMETER_BYTES: usize = 256;

/// What a kernel needs of an adapter beside WebGPU's least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Nothing.
    Single,
    /// Weights in half precision.
    Half,
    /// The same, and matrices that a subgroup multiplies together.
    Cooperative,
}

impl Tier {
    /// Whether weights are bound in half precision too.
    pub(crate) fn is_half(self) -> bool {
        self != Tier::Single
    }

    /// What stands before everything else.
    fn extensions(self) -> &'static str {
        match self {
            Tier::Single => "",
            Tier::Half => "enable f16;\n",
            Tier::Cooperative => "enable f16;\nenable wgpu_cooperative_matrix;\n",
        }
    }
}

/// A kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The file's stem.
    pub(crate) name: &'static str,
    pub(crate) tier: Tier,
    /// Shared parts in front, and the file.
    parts: &'static [&'static str],
    /// 32-bit words of its parameters.
    pub(crate) words: usize,
    /// Whether it reads or writes the state store.
    pub(crate) stateful: bool,
}

const PRELUDE: &str = include_str!("../wgsl/prelude.wgsl");
const MATH: &str = include_str!("../wgsl/math.wgsl");
const FULL: &str = include_str!("../wgsl/full.wgsl");
const HALF: &str = include_str!("../wgsl/half.wgsl");
const FOURS: &str = include_str!("../wgsl/fours.wgsl");
const WIDE: &str = include_str!("../wgsl/wide.wgsl");
const REDUCE: &str = include_str!("../wgsl/reduce.wgsl");
const CELL: &str = include_str!("../wgsl/cell.wgsl");
const RECURRENCE: &str = include_str!("../wgsl/recurrence.wgsl");

macro_rules! kernels {
    ($(
        $constant:ident: $tier:ident, $file:literal, [$($part:ident),*], $words:literal,
        $stateful:literal;
    )*) => {
        $(pub(crate) static $constant: Kernel = Kernel {
            name: $file,
            tier: Tier::$tier,
            parts: &[$($part,)* include_str!(concat!("../wgsl/", $file, ".wgsl"))],
            words: $words,
            stateful: $stateful,
        };)*

        /// All of them.
        #[cfg(test)]
        pub(crate) static ALL: &[&Kernel] = &[$(&$constant),*];
    };
}

kernels! {
    ATTENTION: Single, "attention", [PRELUDE], 29, true;
    ATTENTION_COOPERATIVE: Cooperative, "attention_cooperative", [FOURS], 20, false;
    ATTENTION_PREPARE: Single, "attention_prepare", [PRELUDE, MATH], 15, true;
    ATTENTION_RING: Single, "attention_ring", [PRELUDE], 15, true;
    ATTENTION_TILE: Single, "attention_tile", [PRELUDE], 29, false;
    BINARY: Single, "binary", [PRELUDE, MATH], 16, false;
    COMMIT: Single, "commit", [PRELUDE], 7, true;
    DENORMALIZE: Single, "denormalize", [PRELUDE, MATH], 14, false;
    EMPIRICAL_QUANTILES: Single, "empirical_quantiles", [PRELUDE, MATH], 7, false;
    GATHER: Single, "gather", [PRELUDE], 7, false;
    INTERPOLATE: Single, "interpolate", [PRELUDE], 6, false;
    LAYOUT: Single, "layout", [PRELUDE], 21, false;
    LINEAR: Single, "linear", [PRELUDE, FULL, MATH], 23, false;
    LINEAR_HALF: Half, "linear", [PRELUDE, HALF, MATH], 23, false;
    LINEAR_COOPERATIVE: Cooperative, "linear_cooperative", [WIDE, MATH], 14, false;
    NORM: Single, "norm", [PRELUDE, REDUCE], 12, false;
    NORM_ROW: Single, "norm_row", [FOURS], 12, false;
    NORMALIZE: Single, "normalize", [PRELUDE, MATH, REDUCE], 18, true;
    PATCH: Single, "patch", [PRELUDE], 9, false;
    POOL: Single, "pool", [PRELUDE, MATH], 7, false;
    RAMP: Single, "ramp", [PRELUDE], 4, false;
    RNN_COOPERATIVE: Cooperative, "rnn_cooperative", [FOURS, HALF, MATH, CELL, RECURRENCE], 32,
        true;
    RNN_ROW: Single, "rnn_row", [PRELUDE, FULL, MATH, CELL, RECURRENCE], 32, true;
    RNN_ROW_HALF: Half, "rnn_row", [PRELUDE, HALF, MATH, CELL, RECURRENCE], 32, true;
    RNN_ROW_STEP: Single, "rnn_row_step", [PRELUDE, FULL, MATH, CELL, RECURRENCE], 32, true;
    RNN_ROW_STEP_HALF: Half, "rnn_row_step", [PRELUDE, HALF, MATH, CELL, RECURRENCE], 32, true;
    RNN_STACK: Single, "rnn_stack", [PRELUDE, FULL, MATH, CELL, RECURRENCE], 32, true;
    RNN_STACK_HALF: Half, "rnn_stack", [PRELUDE, HALF, MATH, CELL, RECURRENCE], 32, true;
    RNN_STEP: Single, "rnn_step", [PRELUDE, FULL, MATH, CELL, RECURRENCE], 32, true;
    RNN_STEP_HALF: Half, "rnn_step", [PRELUDE, HALF, MATH, CELL, RECURRENCE], 32, true;
    SAMPLE: Single, "sample", [PRELUDE, MATH], 6, false;
    SOFTMAX: Single, "softmax", [PRELUDE, REDUCE], 4, false;
    UNARY: Single, "unary", [PRELUDE, MATH], 5, false;
    WEIGHTED_SUM: Single, "weighted_sum", [PRELUDE, REDUCE], 6, false;
}

impl Kernel {
    /// The whole text with these constants.
    ///
    /// # Panics
    /// If lines are repeated by a constant that has no value: a bug of the step.
    pub(crate) fn text(&self, constants: &Constants) -> String {
        let parts = self.parts.join("\n");
        let value = |name: &str| {
            let found = constants.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            found.unwrap_or_else(|| panic!("kernel `{}` repeats lines by `{name}`", self.name))
        };
        self.tier.extensions().to_owned() + &text::expand(&parts, &value)
    }

    /// The name that its launches are counted under: op, tier and number format.
    pub(crate) fn counter(&self) -> String {
        match self.tier {
            Tier::Single => format!("{}-wgsl-f32", self.name),
            Tier::Half | Tier::Cooperative => format!("{}-wgsl-f16", self.name),
        }
    }
}

/// The values of a kernel's `override` constants; those that are not named have their defaults.
pub(crate) type Constants = Vec<(&'static str, u32)>;

/// A kernel's name and tier, which only one kernel has.
pub(crate) type Key = (&'static str, Tier);

/// Which of the layouts a kernel has.
fn layout_index(stateful: bool, half: bool) -> usize {
    usize::from(stateful) + 2 * usize::from(half)
}

/// The binding layouts of all kernels, and the pipelines made so far.
#[derive(Debug)]
pub(crate) struct Pipelines {
    /// Without and with the state store, each without and with weights in half precision.
    layouts: [(wgpu::BindGroupLayout, wgpu::PipelineLayout); 4],
    /// By their text.
    modules: Mutex<BTreeMap<String, wgpu::ShaderModule>>,
    made: Mutex<BTreeMap<(Key, Constants), Arc<wgpu::ComputePipeline>>>,
    /// Of the driver, where it is kept between processes.
    cache: Option<wgpu::PipelineCache>,
}

impl Pipelines {
    pub(crate) fn new(device: &wgpu::Device, cache: Option<wgpu::PipelineCache>) -> Pipelines {
        let layout = |stateful: bool, half: bool| {
            let mut entries = vec![
                entry(0, wgpu::BufferBindingType::Uniform),
                entry(1, wgpu::BufferBindingType::Storage { read_only: false }),
                entry(2, wgpu::BufferBindingType::Storage { read_only: true }),
                entry(3, wgpu::BufferBindingType::Storage { read_only: true }),
            ];
            if stateful {
                entries.push(entry(4, wgpu::BufferBindingType::Storage { read_only: false }));
            }
            if half {
                entries.push(entry(5, wgpu::BufferBindingType::Storage { read_only: true }));
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
        let layouts =
            [layout(false, false), layout(true, false), layout(false, true), layout(true, true)];
        Pipelines { layouts, modules: Mutex::default(), made: Mutex::default(), cache }
    }

    /// The layout of the one bind group, without or with the state store and weights in half
    /// precision.
    pub(crate) fn bindings(&self, stateful: bool, half: bool) -> &wgpu::BindGroupLayout {
        &self.layouts[layout_index(stateful, half)].0
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
        let key = ((kernel.name, kernel.tier), constants.clone());
        if let Some(pipeline) = made.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let what = format!("kernel `{}` with {constants:?}", kernel.counter());
        let place = (DeviceErrorKind::Compile, what.as_str());
        let pipeline = checked(device, health, place, || self.make(device, kernel, constants))?;
        let pipeline = Arc::new(pipeline);
        made.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    /// How many were made so far.
    pub(crate) fn count(&self) -> usize {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Every variant made so far.
    #[cfg(test)]
    pub(crate) fn variants(&self) -> Vec<(Key, Constants)> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn make(
        &self,
        device: &wgpu::Device,
        kernel: &'static Kernel,
        constants: &Constants,
    ) -> wgpu::ComputePipeline {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let text = kernel.text(constants);
        let module = modules.entry(text).or_insert_with_key(|text| {
            device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name),
                source: wgpu::ShaderSource::Wgsl(text.as_str().into()),
            })
        });
        let constants: Vec<(&str, f64)> =
            constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&self.layouts[layout_index(kernel.stateful, kernel.tier.is_half())].1),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // No kernel reads workgroup memory that it has not written.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref(),
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
