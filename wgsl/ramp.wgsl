// `ramp`: an arithmetic progression, `y[i] = (start + i) * factor`. One invocation an element.

struct Params {
    y: u32,
    count: u32,
    // With the context length times its factor in it.
    start: f32,
    factor: f32,
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
    store(params.y + i, (params.start + f32(i)) * params.factor);
}
