// `interpolate`: the last axis resampled. One invocation a point of the result. Where each point
// lies is a constant of the program: the left knot, and how far right of it.

struct Params {
    x: u32,
    y: u32,
    count: u32,
    knots: u32,
    size: u32,
    // [size]: left knot as i32; then [size]: distance from it.
    places: u32,
}

// 0 nearest, 1 linear, 2 cubic convolution.
override KIND: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

fn knot(row: u32, at: i32) -> f32 {
    return load(row + u32(clamp(at, 0, i32(params.knots) - 1)));
}

fn near(d: f32) -> f32 {
    return (1.25 * d - 2.25) * d * d + 1.0;
}

fn far(d: f32) -> f32 {
    return ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0;
}

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
    let point = i % params.size;
    let row = params.x + (i / params.size) * params.knots;
    let left = bitcast<i32>(arena[params.places + point]);
    let t = load(params.places + params.size + point);
    var y = knot(row, left);
    if KIND == 1u {
        y = y * (1.0 - t) + knot(row, left + 1) * t;
    }
    if KIND == 2u {
        y = knot(row, left - 1) * far(t + 1.0) + y * near(t)
            + knot(row, left + 1) * near(1.0 - t) + knot(row, left + 2) * far(2.0 - t);
    }
    store(params.y + i, y);
}
