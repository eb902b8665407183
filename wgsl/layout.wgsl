// `slice`, `concat`, `transpose`, `expand`: elements under other strides, as bits. One invocation
// an element moved. Axes are the last six, slowest first.

struct Params {
    sizes_low: vec4<u32>,
    sizes_high: vec2<u32>,
    from_high: vec2<u32>,
    from_low: vec4<u32>,
    to_low: vec4<u32>,
    to_high: vec2<u32>,
    source: u32,
    to: u32,
    count: u32,
}

// 1 where the elements are a weight's.
override WEIGHT: u32 = 0u;

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
    var rest = i;
    var source = params.source;
    var to = params.to;
    for (var axis = 4u; axis > 0u; axis--) {
        let size = params.sizes_low[axis - 1u];
        let at = rest % size;
        source += at * params.from_low[axis - 1u];
        to += at * params.to_low[axis - 1u];
        rest = rest / size;
    }
    let middle = rest % params.sizes_high.y;
    let first = rest / params.sizes_high.y;
    source += middle * params.from_high.y + first * params.from_high.x;
    to += middle * params.to_high.y + first * params.to_high.x;
    if WEIGHT == 1u {
        store(to, weights[source]);
    } else {
        arena[to] = arena[source];
    }
}
