// `binary`: a function of two elements, the second broadcast. One invocation an element of `a`.
// Axes are the last six, slowest first; a broadcast axis has stride 0.

struct Params {
    sizes_low: vec4<u32>,
    sizes_high: vec2<u32>,
    strides_high: vec2<u32>,
    strides_low: vec4<u32>,
    a: u32,
    b: u32,
    y: u32,
    count: u32,
}

override FUNCTION: u32 = 0u;
// 1 where `b` is a weight.
override WEIGHT: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

fn apply(a: f32, b: f32) -> f32 {
    switch FUNCTION {
        case 0u: { return a + b; }
        case 1u: { return a - b; }
        case 2u: { return a * b; }
        case 3u: { return a / b; }
        default: {
            if is_nan(a) || is_nan(b) {
                return nan();
            }
            return select(a, b, b > a);
        }
    }
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
    var rest = i;
    var source = params.b;
    // The fastest axis is the last of `low`; `high` holds the two slowest.
    for (var axis = 4u; axis > 0u; axis--) {
        let size = params.sizes_low[axis - 1u];
        source += (rest % size) * params.strides_low[axis - 1u];
        rest = rest / size;
    }
    source += (rest % params.sizes_high.y) * params.strides_high.y;
    source += (rest / params.sizes_high.y) * params.strides_high.x;
    var b: f32;
    if WEIGHT == 1u {
        b = weights[source];
    } else {
        b = load(source);
    }
    store(params.y + i, apply(load(params.a + i), b));
}
