//! What a submission to an adapter costs beside the kernels, part by part: how the host's data gets
//! there, recording, submitting, waiting, reading.
//!
//! `cargo run --release --example submission [SECONDS]` prints the medians of every way for passes
//! of 0, 1, 8 and 32 dispatches of next to no work, each checked. The backend does what the last
//! row does. Uses wgpu alone, none of the library.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const KERNEL: &str = "
struct Params { add: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> arena: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    arena[id.x] += params.add;
}
";

/// Bytes of the input, of the output, and between parameters.
const BYTES: u64 = 256;

/// The parts of a call in the table's order.
const PARTS: [&str; 6] = ["write", "record", "submit", "wait", "read", "ahead"];

/// How a call is made.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    /// Whether the device's clock is read around the pass.
    timed: bool,
    /// Whether the input is copied from a buffer that is kept, instead of one that wgpu makes.
    kept: bool,
    /// Whether commands are recorded while the device works on the call before.
    ahead: bool,
}

const WAYS: [Way; 4] = [
    Way { name: "write_buffer, clock read", timed: true, kept: false, ahead: false },
    Way { name: "write_buffer", timed: false, kept: false, ahead: false },
    Way { name: "kept upload buffer", timed: false, kept: true, ahead: false },
    Way { name: "the same, recorded ahead", timed: false, kept: true, ahead: true },
];

struct Bench {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    arena: wgpu::Buffer,
    upload: wgpu::Buffer,
    result: wgpu::Buffer,
    clock: Option<(wgpu::QuerySet, wgpu::Buffer, wgpu::Buffer)>,
}

impl Bench {
    fn open() -> Result<Bench, Box<dyn Error>> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = pollster::block_on(instance.request_adapter(&options))?;
        let info = adapter.get_info();
        println!("{} {} {}", info.name, info.driver, info.driver_info);
        let features = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        let descriptor = wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(KERNEL.into()),
        });
        let entry = |binding, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
            count: None,
        };
        let storage = wgpu::BufferBindingType::Storage { read_only: false };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &[entry(0, wgpu::BufferBindingType::Uniform, true), entry(1, storage, false)],
        });
        let whole = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&whole),
            module: &module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        let buffer = |size, usage, mapped_at_creation| {
            let label = None;
            device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation })
        };
        use wgpu::BufferUsages as Use;
        let uniform = buffer(32 * BYTES, Use::UNIFORM | Use::COPY_DST, false);
        for i in 0..32 {
            queue.write_buffer(&uniform, i * BYTES, &1_u32.to_le_bytes());
        }
        let arena = buffer(1 << 20, Use::STORAGE | Use::COPY_DST | Use::COPY_SRC, false);
        let upload = buffer(BYTES, Use::MAP_WRITE | Use::COPY_SRC, true);
        let result = buffer(BYTES, Use::MAP_READ | Use::COPY_DST, false);
        let clock = (!features.is_empty()).then(|| {
            let times = device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let resolved = buffer(16, Use::QUERY_RESOLVE | Use::COPY_SRC, false);
            (times, resolved, buffer(16, Use::MAP_READ | Use::COPY_DST, false))
        });
        let window = wgpu::BufferBinding {
            buffer: &uniform,
            offset: 0,
            size: std::num::NonZeroU64::new(BYTES),
        };
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &layout,
            entries: &[
                wgpu::BindGroupEntry {
                    binding: 0,
                    resource: wgpu::BindingResource::Buffer(window),
                },
                wgpu::BindGroupEntry { binding: 1, resource: arena.as_entire_binding() },
            ],
        });
        Ok(Bench { device, queue, pipeline, group, arena, upload, result, clock })
    }

    fn record(&self, way: Way, dispatches: u32) -> wgpu::CommandBuffer {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        if way.kept {
            encoder.copy_buffer_to_buffer(&self.upload, 0, &self.arena, 0, Some(BYTES));
        }
        let clock = self.clock.as_ref().filter(|_| way.timed);
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: clock.map(|(times, ..)| wgpu::ComputePassTimestampWrites {
                    query_set: times,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }),
            });
            for i in 0..dispatches {
                pass.set_pipeline(&self.pipeline);
                pass.set_bind_group(0, &self.group, &[i * BYTES as u32]);
                pass.dispatch_workgroups(1, 1, 1);
            }
        }
        encoder.copy_buffer_to_buffer(&self.arena, 0, &self.result, 0, Some(BYTES));
        if let Some((times, resolved, host)) = clock {
            encoder.resolve_query_set(times, 0..2, resolved, 0);
            encoder.copy_buffer_to_buffer(resolved, 0, host, 0, Some(16));
        }
        encoder.finish()
    }

    /// One call; the time that each part took.
    fn call(
        &self,
        way: Way,
        (dispatches, number): (u32, u32),
        made: &mut Option<wgpu::CommandBuffer>,
    ) -> Result<[f64; 6], Box<dyn Error>> {
        let mut times = [0.0; 6];
        let mut last = Instant::now();
        let mut lap = |part: usize| {
            times[part] = last.elapsed().as_secs_f64() * 1e6;
            last = Instant::now();
        };
        let input = [number; BYTES as usize / 4].map(u32::to_le_bytes);
        let input = input.as_flattened();
        if way.kept {
            self.upload.slice(..).get_mapped_range_mut()?.copy_from_slice(input);
        } else {
            self.queue.write_buffer(&self.arena, 0, input);
        }
        lap(0);
        let commands = made.take().unwrap_or_else(|| self.record(way, dispatches));
        lap(1);
        if way.kept {
            self.upload.unmap();
        }
        self.queue.submit([commands]);
        let landed = Arc::new(AtomicBool::new(false));
        if way.kept {
            self.upload.slice(..).map_async(wgpu::MapMode::Write, |_| {});
        }
        let told = Arc::clone(&landed);
        let tell = move |_| told.store(true, Ordering::Release);
        self.result.slice(..).map_async(wgpu::MapMode::Read, tell);
        lap(2);
        if way.ahead {
            *made = Some(self.record(way, dispatches));
        }
        lap(5);
        while !landed.load(Ordering::Acquire) {
            self.device.poll(wgpu::PollType::Poll)?;
        }
        lap(3);
        let view = self.result.slice(..).get_mapped_range()?;
        let found = u32::from_le_bytes([view[0], view[1], view[2], view[3]]);
        drop(view);
        self.result.unmap();
        lap(4);
        if found != number + dispatches {
            return Err(format!("{found}, expected {number} + {dispatches}").into());
        }
        Ok(times)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(0.3), |text| text.parse())?;
    let bench = Bench::open()?;
    println!(
        "{:26} {:>10} {:>8} {}",
        "way",
        "dispatches",
        "all",
        PARTS.map(|p| format!("{p:>8}")).join(" ")
    );
    for way in WAYS {
        for dispatches in [0, 1, 8, 32] {
            let mut made = None;
            let mut parts: [Vec<f64>; 6] = Default::default();
            let mut all = Vec::new();
            let begun = Instant::now();
            let mut number = 0;
            while begun.elapsed() < Duration::from_secs_f64(seconds) || number < 20 {
                let start = Instant::now();
                let times = bench.call(way, (dispatches, number), &mut made)?;
                number += 1;
                if number > 10 {
                    all.push(start.elapsed().as_secs_f64() * 1e6);
                    parts.iter_mut().zip(times).for_each(|(part, time)| part.push(time));
                }
            }
            let parts = parts.map(|part| format!("{:8.1}", median(part))).join(" ");
            println!("{:26} {dispatches:>10} {:8.1} {parts}", way.name, median(all));
        }
    }
    Ok(())
}
