// `pool`: maximum or mean over windows of an axis. One invocation an element of the result
// `[outer, windows, inner]`.

struct Params {
    x: u32,
    y: u32,
    count: u32,
    length: u32,
    windows: u32,
    kernel: u32,
    inner: u32,
}

// 1 for the mean, 0 for the maximum.
override MEAN: u32 = 0u;

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
    let window = (i / params.inner) % params.windows;
    let outer = i / params.inner / params.windows;
    let begin = window * params.kernel;
    let end = min(begin + params.kernel, params.length);
    let base = params.x + outer * params.length * params.inner + inner;
    var sum = 0.0;
    var largest = negative_infinity();
    for (var at = begin; at < end; at++) {
        let x = load(base + at * params.inner);
        sum += x;
        // A NaN once taken stays: no comparison with it is true.
        if is_nan(x) || x > largest {
            largest = x;
        }
    }
    store(params.y + i, select(largest, sum / f32(end - begin), MEAN == 1u));
}
