// `patch`: windows of the last axis. One invocation an element of `[rows, windows, length]`.

struct Params {
    x: u32,
    y: u32,
    count: u32,
    time: u32,
    windows: u32,
    length: u32,
    stride: u32,
    // Steps dropped at the start, and zeros put in front.
    dropped: u32,
    zeros: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_number(group, groups) * 64u + lane;
    if i >= params.count {
        return;
    }
    let at = i % params.length;
    let window = (i / params.length) % params.windows;
    let row = i / params.length / params.windows;
    let step = window * params.stride + at + params.dropped;
    if step < params.zeros {
        arena[params.y + i] = 0u;
        return;
    }
    // Behind the end the last step repeats.
    let source = min(step - params.zeros, params.time - 1u);
    arena[params.y + i] = arena[params.x + row * params.time + source];
}
