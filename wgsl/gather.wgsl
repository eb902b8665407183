// `gather` and `embedding`: positions of an axis by index, clamped to it. One invocation an element
// of the result `[outer, indices, inner]`.

struct Params {
    x: u32,
    indices: u32,
    y: u32,
    count: u32,
    // Length of the indexed axis, number of indices, elements of what follows the axis.
    length: u32,
    picked: u32,
    inner: u32,
}

// 1 where `x` is a table among the weights.
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
    let inner = i % params.inner;
    let which = i / params.inner;
    let last = i32(params.length) - 1;
    if WEIGHT == 1u {
        let index = clamp(bitcast<i32>(arena[params.indices + which]), 0, last);
        store(params.y + i, weights[params.x + u32(index) * params.inner + inner]);
    } else {
        let at = bitcast<i32>(arena[params.indices + which % params.picked]);
        let index = u32(clamp(at, 0, last));
        let outer = which / params.picked;
        let source = params.x + (outer * params.length + index) * params.inner + inner;
        arena[params.y + i] = arena[source];
    }
}
