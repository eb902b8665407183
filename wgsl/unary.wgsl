// `unary`: a function of each element. One invocation an element.

struct Params {
    x: u32,
    y: u32,
    count: u32,
    factor: f32,
    offset: f32,
}

override FUNCTION: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

fn apply(x: f32) -> f32 {
    switch FUNCTION {
        case 11u: { return asinh_of(x); }
        case 12u: { return sinh_of(x); }
        case 13u: { return exp(x); }
        case 14u: { return sqrt(x); }
        case 15u: { return params.factor * x + params.offset; }
        case 16u: { return select(1.0, 0.0, is_nan(x)); }
        case 17u: { return select(x, 0.0, is_nan(x)); }
        default: { return activate(FUNCTION, x, params.factor); }
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
    store(params.y + i, apply(load(params.x + i)));
}
