//! Checks without a GPU: every program of the conformance cases against the least that WebGPU
//! guarantees, and every shader variant that they need in the languages of all backends.
//!
//! The noop backend runs all of wgpu's validation and computes nothing.

use std::collections::BTreeMap;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use neural_forecast_runtime::device::{Device, KernelClass, LoadOptions, Precision, Request};
use neural_forecast_runtime::plan::Bucket;
use neural_forecast_runtime::testing::cases;

use crate::device::{WgpuDevice, WgpuOptions};
use crate::kernel::{
    ALL, ATTENTION_COOPERATIVE, Constants, Kernel, LINEAR_COOPERATIVE, RNN_COOPERATIVE, Tier,
};
use crate::spirv;
use crate::step::{attention_variants, cooperative_variants, recurrence_variants};
use crate::wide_cases::wide;

fn minimum() -> WgpuDevice {
    let options = WgpuOptions { minimum_limits: true, ..WgpuOptions::default() };
    WgpuDevice::open_noop(&options).expect("the noop backend is always there")
}

/// Compiles every case on a device; messages of those that it refuses.
fn compile_all(device: &WgpuDevice, precision: Precision) -> Vec<String> {
    let mut failures = Vec::new();
    for case in cases().into_iter().chain(wide()) {
        for (fuse, lower) in [(true, false), (false, true)] {
            let state_slots = case.bucket.batch;
            let options =
                LoadOptions { precision, fuse, lower, state_slots, ..LoadOptions::default() };
            let compile = || {
                let mut resident = device.load(&case.plan, &case.weights, &options)?;
                for class in [KernelClass::Latency, KernelClass::Throughput] {
                    for batch in [case.bucket.batch, 1] {
                        let bucket = Bucket { batch, ..case.bucket };
                        resident.compile(Request { entry: case.entry, bucket, class })?;
                    }
                }
                Ok(())
            };
            let compiled: Result<(), neural_forecast_runtime::DeviceError> = compile();
            if let Err(error) = compiled {
                failures.push(format!("{}, fuse {fuse}: {error}", case.name));
            }
        }
    }
    failures
}

/// What naga must be told that a device of this tier has.
fn capabilities(tier: Tier) -> Capabilities {
    match tier {
        Tier::Single => Capabilities::empty(),
        Tier::Half => Capabilities::SHADER_FLOAT16,
        Tier::Cooperative => {
            Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP
        }
    }
}

/// A variant in SPIR-V, MSL and HLSL; in SPIR-V alone where subgroups multiply matrices, which naga
/// writes for Vulkan in the sizes that the kernel has.
fn translate(kernel: &Kernel, constants: &Constants) -> Result<(), String> {
    let text = kernel.text(constants);
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities(kernel.tier));
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(&text))?;
    check_parameters(kernel, &module)?;
    let values = constants.iter().map(|&(name, value)| (name.to_owned(), f64::from(value)));
    let values = values.collect();
    let entry = Some((naga::ShaderStage::Compute, "main"));
    let (module, info) =
        naga::back::pipeline_constants::process_overrides(&module, &info, entry, &values)
            .map_err(|e| format!("overrides: {e}"))?;

    let stage = naga::ShaderStage::Compute;
    let pipeline = spv::PipelineOptions { shader_stage: stage, entry_point: "main".into() };
    let words = spv::write_vec(&module, &info, &spv::Options::default(), Some(&pipeline))
        .map_err(|e| format!("SPIR-V: {e}"))?;
    if kernel.tier == Tier::Cooperative {
        // Validators of 2023 do not know these matrices yet.
        return Ok(());
    }
    spirv::check(&words).map_err(|e| format!("SPIR-V: {e}"))?;
    let options = msl::Options { lang_version: (2, 3), ..msl::Options::default() };
    msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .map_err(|e| format!("MSL: {e}"))?;
    let options =
        hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, ..hlsl::Options::default() };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((stage, "main".into())) };
    let mut out = String::new();
    hlsl::Writer::new(&mut out, &options, &pipeline)
        .write(&module, &info, None)
        .map_err(|e| format!("HLSL: {e}"))?;
    Ok(())
}

/// The struct of parameters has as many words as the steps give, without gaps.
fn check_parameters(kernel: &Kernel, module: &naga::Module) -> Result<(), String> {
    let parameters = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params"));
    let Some((_, naga::Type { inner: naga::TypeInner::Struct { members, .. }, .. })) = parameters
    else {
        return Err("there is no struct `Params`".into());
    };
    let mut next = 0;
    for member in members {
        let size = module.types[member.ty].inner.size(module.to_ctx());
        if member.offset != next {
            let name = member.name.as_deref().unwrap_or_default();
            return Err(format!("`{name}` is at byte {}, expected {next}", member.offset));
        }
        next += size;
    }
    match next as usize == kernel.words * 4 {
        true => Ok(()),
        false => Err(format!("{next} bytes of parameters, expected {} words", kernel.words)),
    }
}

/// Variants with the kernels that they are of, each in all languages, and what kernels there are.
fn translate_all(device: &WgpuDevice, seen: &mut BTreeMap<&'static str, usize>) {
    let mut failures = Vec::new();
    for ((name, tier), constants) in &device.variants() {
        let same = |kernel: &&&Kernel| (kernel.name, kernel.tier) == (*name, *tier);
        let kernel = ALL.iter().find(same).expect("it is one of all");
        *seen.entry(*name).or_default() += 1;
        if let Err(message) = translate(kernel, constants) {
            failures.push(format!("{} {constants:?}: {message}", kernel.counter()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_case_compiles_within_the_least_limits_and_its_shaders_translate() {
    let device = minimum();
    let failures = compile_all(&device, Precision::F32);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let mut seen = BTreeMap::new();
    translate_all(&device, &mut seen);
    let missing: Vec<&str> = ALL
        .iter()
        .filter(|kernel| kernel.tier != Tier::Cooperative)
        .map(|kernel| kernel.name)
        .filter(|name| !seen.contains_key(name))
        .collect();
    assert!(missing.is_empty(), "no case needs the kernels {missing:?}");
    println!("{} variants of {} kernels", device.variants().len(), seen.len());
}

#[test]
fn every_case_compiles_in_half_precision_and_its_shaders_translate() {
    let device = WgpuDevice::open_noop(&WgpuOptions::default()).expect("it is always there");
    assert!(device.capabilities().precisions.contains(&Precision::F16));
    let failures = compile_all(&device, Precision::F16);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    translate_all(&device, &mut BTreeMap::new());
}

#[test]
fn matrices_of_subgroups_translate_for_every_tile() {
    let products = cooperative_variants().into_iter().map(|c| (&LINEAR_COOPERATIVE, c));
    let recurrences = recurrence_variants().into_iter().map(|c| (&RNN_COOPERATIVE, c));
    let attentions = attention_variants().into_iter().map(|c| (&ATTENTION_COOPERATIVE, c));
    for (kernel, constants) in products.chain(recurrences).chain(attentions) {
        let translated = translate(kernel, &constants);
        assert_eq!(translated, Ok(()), "{constants:?}");
    }
}
